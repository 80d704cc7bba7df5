"""The figure of the remaining weights of every pruned matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from raypp.figures import BLUE, NothingToDraw, Picture
from raypp.pruning.density import split_layer_name


class Layer(Protocol):
    """A pruned matrix, such as `raypp.pruning.density.LayerDensity`."""

    @property
    def name(self) -> str: ...
    @property
    def kept(self) -> int: ...
    @property
    def total(self) -> int: ...


def density_by_layer_figure(layers: Sequence[Layer]) -> Picture:
    """Remaining weights of each pruned matrix (%): a map of layers by kind of matrix, or bars if layers have no
    numbers."""
    if not layers:
        raise NothingToDraw("density by layer: the model has no pruned layers")
    places = [split_layer_name(layer.name) for layer in layers]
    return _density_map(layers, places) if any(number for _, number, _ in places) else _density_bars(layers)


def _density_map(layers: Sequence[Layer], places: Sequence[tuple[str, str, str]]) -> Picture:
    """One row per layer and one for all layers, one column per kind of matrix and one for all kinds."""
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

    figure = Picture(2.6 + 0.75 * percent.shape[1], max(4.0, 2.2 + 0.3 * percent.shape[0]))
    axes = figure.subplots()
    # At least twice the mean, so that equally dense matrices have the middle colour of the scale.
    top = max(0.1, np.nanmax(percent), min(100.0, 2 * percent[-1, -1]))
    image = axes.imshow(percent, cmap="cividis", vmin=0.0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        if not np.isnan(value):
            color = "black" if value > 0.45 * top else "white"
            axes.text(column, row, _short(value), ha="center", va="center", color=color, fontsize=8, in_layout=False)
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


def _density_bars(layers: Sequence[Layer]) -> Picture:
    figure = Picture(7.0, 1.2 + 0.3 * len(layers))
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
