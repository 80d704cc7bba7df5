"""The figure of attention heads: which heads survive, and the remaining weights of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raypp.figures import NothingToDraw, Picture
from raypp.pruning.heads import AttentionHeads

DEAD = "\N{MULTIPLICATION SIGN}"


def heads_figure(layers: Sequence[AttentionHeads]) -> Picture:
    """Remaining weights of every head (%), one row per layer; dead heads are crossed out."""
    if not layers:
        raise NothingToDraw("attention heads: raypp does not know this kind of attention")
    columns = max(len(layer.kept) for layer in layers)
    percent = np.full((len(layers), columns), np.nan)
    for row, layer in enumerate(layers):
        percent[row, : len(layer.kept)] = 100.0 * np.array(layer.kept) / layer.total
    alive = sum(sum(layer.survives) for layer in layers)
    every = sum(len(layer.survives) for layer in layers)

    figure = Picture(2.4 + 0.5 * max(columns, 6), 1.9 + 0.34 * max(len(layers), 4))
    axes = figure.subplots()
    top = max(0.1, float(np.nanmax(percent)))
    image = axes.imshow(percent, cmap="cividis", vmin=0.0, vmax=top, aspect="auto")
    for row, layer in enumerate(layers):
        for head, survives in enumerate(layer.survives):
            value = percent[row, head]
            text = (f"{value:.0f}" if value >= 9.95 else f"{value:.1f}") if survives else DEAD
            color = "black" if value > 0.45 * top else "white"
            size = 8 if survives else 14
            axes.text(head, row, text, ha="center", va="center", color=color, fontsize=size, in_layout=False)
    one_stack = len({layer.stack for layer in layers}) == 1
    names = [layer.number if one_stack else f"{layer.stack}.{layer.number}".strip(".") for layer in layers]
    axes.set_yticks(range(len(layers)), names)
    axes.set_xticks(range(columns))
    axes.set_xlabel(
        "attention head" + ("" if alive == every else f"  ({DEAD}: no weights left in its values or its output)")
    )
    axes.set_ylabel("layer")
    axes.set_title(f"{alive} of {every} attention heads survive")
    figure.colorbar(image, label="remaining weights of the head (%)")
    return figure
