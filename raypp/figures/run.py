"""The figures of a run, drawn from its metrics.jsonl and the statistics of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from raypp.evaluation.metric_label import metric_label
from raypp.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, NothingToDraw, Picture
from raypp.figures.heads import heads_figure
from raypp.figures.layers import density_by_layer_figure
from raypp.figures.mask import mask_figure
from raypp.figures.weights import movement_figure, scores_figure, weights_figure
from raypp.pruning.weight_statistics import WeightStatistics

MAIN_FIGURES = ("schedule", "evaluation", "loss", "density_by_layer")
FIGURES = (*MAIN_FIGURES, "heads", "scores", "weights", "movement", "mask")
"""The names of all figures, in the order in which they are shown."""
SMOOTHING_WINDOWS = 20  # the running mean of a loss is over one such part of the run

Record = Mapping[str, Any]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]
Panel = tuple[str, Callable[[Axes], None]]


DRAWINGS_OF_WEIGHTS: dict[str, Callable[[WeightStatistics], Picture]] = {
    "density_by_layer": lambda statistics: density_by_layer_figure(statistics.layers),
    "heads": lambda statistics: heads_figure(statistics.heads),
    "scores": scores_figure,
    "weights": weights_figure,
    "movement": movement_figure,
    "mask": lambda statistics: mask_figure(statistics.mask, statistics.mask_name),
}
"""The function that draws each figure of weights."""


def run_figures(
    records: Sequence[Record], statistics: WeightStatistics | None, names: Sequence[str] = FIGURES
) -> dict[str, Picture]:
    """The figures for which there is data, by name, in the order of `names`.

    Args:
        records: the records of metrics.jsonl.
        statistics: the statistics of the weights; None for a dense run.
    """
    over_steps = {"schedule": schedule_figure, "evaluation": evaluation_figure, "loss": loss_figure}
    drawings: dict[str, Callable[[], Picture]] = {name: partial(draw, records) for name, draw in over_steps.items()}
    if statistics is not None:
        drawings |= {name: partial(draw, statistics) for name, draw in DRAWINGS_OF_WEIGHTS.items()}
    figures = {}
    for name in names:
        with suppress(NothingToDraw):
            if name in drawings:
                figures[name] = drawings[name]()
    return figures


def overview_figure(records: Sequence[Record]) -> Picture:
    """An overview in one figure: the pruning schedule above, the evaluations below."""
    return _over_steps("Pruning schedule and evaluation", [*_schedule_panels(records), *_evaluation_panels(records)])


def schedule_figure(records: Sequence[Record]) -> Picture:
    """Density (requested and achieved), threshold and lambda over steps, in a panel each."""
    return _over_steps("Pruning schedule", _schedule_panels(records))


def _schedule_panels(records: Sequence[Record]) -> list[Panel]:
    requested, achieved = _series(records, "prune/requested_density"), _series(records, "prune/density")

    def draw_densities(axes: Axes) -> None:
        if requested is not None:
            _line(axes, requested, color=ORANGE, linestyle="--", linewidth=2.5, label="requested")
        if achieved is not None:
            # Markers without a line, because the density is only measured at evaluations.
            axes.plot(*achieved, color=BLUE, marker="s", markersize=5, linestyle="none", label="achieved")
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
    return panels


def loss_figure(records: Sequence[Record]) -> Picture:
    """The loss and its terms over steps: faint values, and a running mean; the penalty in a panel of its own."""
    styles = {
        "loss": (BLACK, "-"),
        "soft_loss": (BLUE, "--"),
        "hard_loss": (VERMILION, "-."),
        "logits_loss": (SKY, "--"),
        "hidden_loss": (GREEN, ":"),
        "cosine_loss": (PURPLE, ":"),
    }
    terms = {name: series for name in styles if (series := _series(records, f"train/{name}")) is not None}
    if len(terms) == 2 and len({tuple(series[1].tolist()) for series in terms.values()}) == 1:
        del terms["loss"]  # the loss is a single term with weight 1
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


def evaluation_figure(records: Sequence[Record]) -> Picture:
    """Evaluation metrics over steps: metrics between -1 and 1 in one panel, each other metric in its own panel."""
    return _over_steps("Evaluation", _evaluation_panels(records))


def _evaluation_panels(records: Sequence[Record]) -> list[Panel]:
    keys = dict.fromkeys(key for record in records for key in record if key.startswith("eval/"))
    found = {metric_label(key): _series(records, key) for key in keys}
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
            panels.append((name.replace("_", " "), partial(draw, chosen={name: series})))
    return panels


def _series(records: Iterable[Record], key: str) -> Series | None:
    """Steps and values of the records that have the key, one value per step; None if no record has it."""
    # If a step has two records (a log line and an evaluation), the later one is its final state.
    values = {record["step"]: record[key] for record in records if key in record}
    return (np.array([*values], np.float64), np.array([*values.values()], np.float64)) if values else None


def _line(axes: Axes, series: Series, **style: Any) -> None:
    axes.plot(*series, marker="o" if len(series[0]) <= 30 else None, markersize=4, **style)


def _smoothed_line(axes: Axes, series: Series, color: str, style: str, label: str | None = None) -> None:
    axes.plot(*series, color=color, alpha=0.25, linewidth=0.8)
    _line(axes, (series[0], running_mean(series[1])), color=color, linestyle=style, linewidth=1.8, label=label)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred running mean of values [n], which does not lag; near the ends the window is smaller on both sides."""
    half, sums = len(values) // SMOOTHING_WINDOWS // 2, np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    return np.asarray((sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def _over_steps(title: str, panels: Sequence[Panel]) -> Picture:
    """Panels (label of the y axis, drawing function) one below the other, with one axis of steps."""
    if not panels:
        raise NothingToDraw(f"{title}: none of its series was recorded")
    figure = Picture(7.0, 1.0 + 2.6 * len(panels))
    figure.suptitle(title)
    column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, draw) in zip(column, panels, strict=True):
        draw(axes)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels(column)
    column[-1].set_xlabel("optimizer step")
    column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure
