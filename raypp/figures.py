"""Figures of a run, drawn from its metrics.jsonl and its layers.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; lines also differ in style or marker.
Figures are plain objects: pyplot, with its global state and its windows, is not used.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from raypp.errors import ConfigError
from raypp.storage import Location

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
FORMATS = (".png", ".jpg", ".svg", ".pdf")
SMOOTHING_WINDOWS = 20  # a running mean of a loss is over this part of the run

Record = Mapping[str, Any]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]
Panel = tuple[str, Callable[[Axes], None]]


class Layer(Protocol):
    """A pruned matrix; `raypp.pruning.density.LayerDensity` is one."""

    @property
    def name(self) -> str: ...
    @property
    def kept(self) -> int: ...
    @property
    def total(self) -> int: ...


class NothingToDraw(ValueError):
    """Nothing that a figure shows is there."""


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that the file's ending names; ConfigError for any other than `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: a figure's file ends in one of {', '.join(FORMATS)}, got {path.suffix!r}")
    save_to(figure, Location.of(path))


def save_to(figure: Figure, file: Location) -> None:
    """Writes a figure on any filesystem; the format follows from the name, which is one of ours."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=file.name.rsplit(".", 1)[-1])
    file.write_bytes(content.getvalue())


def run_figures(records: Sequence[Record], layers: Sequence[Layer]) -> dict[str, Figure]:
    """Every figure, by name, that there is data for."""
    drawings: dict[str, Callable[[], Figure]] = {
        "schedule": partial(schedule_figure, records),
        "loss": partial(loss_figure, records),
        "evaluation": partial(evaluation_figure, records),
        "density_by_layer": partial(density_by_layer_figure, layers),
    }
    figures = {}
    for name, draw in drawings.items():
        with suppress(NothingToDraw):
            figures[name] = draw()
    return figures


# --- over steps ------------------------------------------------------------------------------------------------------


def schedule_figure(records: Sequence[Record]) -> Figure:
    """Density requested and achieved, threshold, and lambda over steps, each of the three in a panel of its own."""
    requested, achieved = _series(records, "prune/requested_density"), _series(records, "prune/density")

    def draw_densities(axes: Axes) -> None:
        if requested is not None:
            _line(axes, requested, color=ORANGE, linestyle="--", linewidth=2.5, label="requested")
        if achieved is not None:
            _line(axes, achieved, color=BLUE, label="achieved")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
        axes.legend(frameon=False)

    panels: list[Panel] = []
    if requested is not None or achieved is not None:
        panels.append(("remaining linear weights", draw_densities))
    for key, label, color in (
        ("prune/threshold", "threshold", GREEN),
        ("prune/penalty_lambda", "lambda of the penalty", PURPLE),
    ):
        if (series := _series(records, key)) is not None:
            panels.append((label, partial(_line, series=series, color=color)))
    return _over_steps("Pruning schedule", panels)


def loss_figure(records: Sequence[Record]) -> Figure:
    """The loss and its terms over steps, values faint, their running mean strong; the penalty in its own panel."""
    styles = {"loss": (BLACK, "-"), "soft_loss": (BLUE, "--"), "hard_loss": (VERMILION, "-.")}
    terms = {name: series for name in styles if (series := _series(records, f"train/{name}")) is not None}
    penalty = _series(records, "train/penalty")

    def draw_terms(axes: Axes) -> None:
        for name, series in terms.items():
            _smoothed_line(axes, series, *styles[name], label=name.replace("_", " "))
        axes.set_ylim(bottom=0.0)
        axes.legend(frameon=False)

    panels: list[Panel] = [("loss (mean of the rows)", draw_terms)] if terms else []
    if penalty is not None:
        panels.append(("penalty", partial(_smoothed_line, series=penalty, color=PURPLE, style="-")))
    return _over_steps("Training loss", panels)


def evaluation_figure(records: Sequence[Record]) -> Figure:
    """Evaluation metrics over steps: those between -1 and 1 together, every other one in a panel of its own."""
    keys = dict.fromkeys(key for record in records for key in record if key.startswith("eval/"))
    found = {key.removeprefix("eval/"): _series(records, key) for key in keys}
    metrics = {name: series for name, series in found.items() if series is not None}
    together = {name: series for name, series in metrics.items() if np.abs(series[1]).max() <= 1}

    def draw(axes: Axes, chosen: Mapping[str, Series]) -> None:
        looks = zip(cycle((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)), cycle("os^Dv"), strict=False)
        for (name, series), (color, marker) in zip(chosen.items(), looks, strict=False):
            axes.plot(*series, color=color, marker=marker, label=name)
        if len(chosen) > 1:
            axes.legend(frameon=False)

    label = next(iter(together)) if len(together) == 1 else "metric"
    panels: list[Panel] = [(label, partial(draw, chosen=together))] if together else []
    for name, series in metrics.items():
        if name not in together:
            panels.append((name, partial(draw, chosen={name: series})))
    return _over_steps("Evaluation", panels)


def _series(records: Iterable[Record], key: str) -> Series | None:
    """Steps and values of the records that hold the key; None if there is none."""
    points = np.array([(record["step"], record[key]) for record in records if key in record], dtype=np.float64)
    return (points[:, 0], points[:, 1]) if len(points) else None


def _line(axes: Axes, series: Series, **style: Any) -> None:
    axes.plot(*series, marker="o" if len(series[0]) <= 30 else None, markersize=4, **style)


def _smoothed_line(axes: Axes, series: Series, color: str, style: str, label: str | None = None) -> None:
    axes.plot(*series, color=color, alpha=0.25, linewidth=0.8)
    _line(axes, (series[0], running_mean(series[1])), color=color, linestyle=style, linewidth=1.8, label=label)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values around each of values [n], so that it does not lag; the window is cut at both ends alike."""
    half, sums = len(values) // SMOOTHING_WINDOWS // 2, np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    return np.asarray((sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def _over_steps(title: str, panels: Sequence[Panel]) -> Figure:
    """Panels (label of the y axis, what draws it) below one another, over one axis of steps."""
    if not panels:
        raise NothingToDraw(f"{title}: none of its series is recorded")
    figure = Figure(figsize=(7.0, 1.0 + 2.6 * len(panels)), layout="constrained")
    figure.suptitle(title)
    column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, draw) in zip(column, panels, strict=True):
        draw(axes)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    column[-1].set_xlabel("optimizer step")
    column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


# --- over layers -----------------------------------------------------------------------------------------------------


def density_by_layer_figure(layers: Sequence[Layer]) -> Figure:
    """Remaining weights of each pruned matrix (%): a map of layers by kinds of matrix; bars if no name has a number."""
    if not layers:
        raise NothingToDraw("density by layer: there is no pruned layer")
    places = [split_layer_name(layer.name) for layer in layers]
    return _density_map(layers, places) if any(number for _, number, _ in places) else _density_bars(layers)


def split_layer_name(name: str) -> tuple[str, str, str]:
    """Stack, layer number and kind of a matrix: encoder.layer.3.output.dense -> (encoder.layer, 3, output.dense).

    The last number counts, unless it ends the name. A name without one has neither stack nor number.
    """
    found = re.fullmatch(r"(?:(.*)\.)?(\d+)\.(.+?)", name)
    return (found[1] or "", found[2], found[3]) if found else ("", "", name)


def _density_map(layers: Sequence[Layer], places: Sequence[tuple[str, str, str]]) -> Figure:
    """A row for each layer and for all of them, a column for each kind of matrix and for all of them."""
    rows = list(dict.fromkeys(place[:2] for place in places))
    columns = list(dict.fromkeys(place[2] for place in places))
    kept, total = np.zeros((2, len(rows) + 1, len(columns) + 1))
    for layer, (stack, number, kind) in zip(layers, places, strict=True):
        cell = rows.index((stack, number)), columns.index(kind)
        for row in (cell[0], -1):
            for column in (cell[1], -1):
                kept[row, column] += layer.kept
                total[row, column] += layer.total
    percent = np.divide(100.0 * kept, total, out=np.full_like(kept, np.nan), where=total > 0)

    size = (2.6 + 0.75 * percent.shape[1], max(4.0, 2.2 + 0.3 * percent.shape[0]))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    # At least twice the mean: where all matrices are equally dense, that is the middle of the scale and not its end.
    top = max(0.1, np.nanmax(percent), min(100.0, 2 * percent[-1, -1]))
    image = axes.imshow(percent, cmap="cividis", vmin=0.0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        if not np.isnan(value):
            color = "black" if value > 0.45 * top else "white"
            axes.text(column, row, _short(value), ha="center", va="center", color=color, fontsize=8)
    one_stack = len({stack for stack, _ in rows}) == 1
    names = [number if one_stack else f"{stack}.{number}".strip(".") or "others" for stack, number in rows]
    axes.set_yticks(range(len(rows) + 1), [*names, "all"])
    axes.set_xticks(range(len(columns) + 1), [*columns, "all"], rotation=35, ha="right", rotation_mode="anchor")
    axes.axhline(len(rows) - 0.5, color="white", linewidth=2)
    axes.axvline(len(columns) - 0.5, color="white", linewidth=2)
    axes.set_ylabel("layer")
    axes.set_title("Remaining weights by layer")
    figure.colorbar(image, label="remaining weights (%)")
    return figure


def _density_bars(layers: Sequence[Layer]) -> Figure:
    figure = Figure(figsize=(7.0, 1.2 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    percent = [100.0 * layer.kept / layer.total for layer in layers]
    bars = axes.barh([layer.name for layer in layers], percent, color=BLUE)
    axes.bar_label(bars, [_short(value) for value in percent], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("remaining weights (%)")
    axes.set_title("Remaining weights by layer")
    return figure


def _short(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 99.95 else f"{percent:.1f}"
