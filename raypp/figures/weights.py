"""Figures of all pruned weights together, drawn from counts: scores, weights, and the movement of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from raypp.figures import BLACK, BLUE, ORANGE, VERMILION, NothingToDraw, Picture
from raypp.pruning.weight_statistics import Histogram, WeightStatistics


def scores_figure(statistics: WeightStatistics) -> Picture:
    """Histogram of the scores of kept and pruned weights, with the lowest kept score."""
    if statistics.scores is None:
        raise NothingToDraw("scores: the method has no scores, or the model is folded and has lost them")
    figure = Picture(7.0, 4.4)
    axes = figure.subplots()
    _draw(axes, statistics.scores)
    lowest = np.array(statistics.lowest_kept)
    if statistics.scores_are_logarithms:
        lowest = np.log10(np.maximum(lowest, 10.0 ** statistics.scores.edges[0]))
    if statistics.scores.pruned.any():
        _draw_threshold(axes, lowest, "lowest score kept")
    axes.set_xlabel("score (its power of ten)" if statistics.scores_are_logarithms else "score")
    axes.set_title("Scores of the pruned matrices")
    _add_legend(figure, [axes])
    return figure


def weights_figure(statistics: WeightStatistics) -> Picture:
    """Histogram of the weights: above the initial weights, if they are known; below the final weights."""
    panels = [("final weight", statistics.weights)]
    if statistics.movement is not None:
        panels.insert(0, ("initial weight", statistics.movement.initial))
    figure = Picture(7.0, 1.4 + 2.7 * len(panels))
    column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, histogram) in zip(column, panels, strict=True):
        _draw(axes, histogram)
        axes.set_xlabel(label)
    column[-1].set_xlabel("final weight (the outermost bins include all weights beyond)")
    if statistics.scores is None and statistics.lowest_kept and statistics.weights.pruned.any():  # magnitude pruning
        lowest = np.array(statistics.lowest_kept)
        _draw_threshold(column[-1], lowest, "smallest absolute weight kept")
        _draw_threshold(column[-1], -lowest)
    column[0].set_title("Weights of the pruned matrices")
    _add_legend(figure, column)
    return figure


def movement_figure(statistics: WeightStatistics) -> Picture:
    """Movement of the weights, kept and pruned weights side by side (Sanh et al. 2020, figure 1).

    The y axis is the change of the weight, not the final weight: fine-tuning moves weights by a hundredth of their
    spread, so a plot of final against initial weight shows only a diagonal.
    """
    movement = statistics.movement
    if movement is None:
        raise NothingToDraw("movement: the initial weights are not known")
    panels = [("kept", movement.kept)]
    if statistics.lowest_kept and movement.pruned.any():  # in a folded model all pruned weights are 0
        panels.append(("pruned", movement.pruned))
    figure = Picture(1.6 + 3.7 * len(panels), 4.6)
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    scale = LogNorm(1, max(2, *(int(counts.max()) for _, counts in panels)))
    ends, reach = movement.edges[[0, -1]], movement.change_edges[-1]
    for axes, (name, counts) in zip(row, panels, strict=True):
        shown = np.ma.masked_equal(counts.T, 0)
        image = axes.imshow(
            shown, cmap="cividis_r", norm=scale, origin="lower", extent=(*ends, -reach, reach), aspect="auto"
        )
        axes.axhline(0, color=BLACK, linewidth=0.8, linestyle="--", label="unmoved")
        axes.axvline(0, color=BLACK, linewidth=0.5)
        axes.plot(ends, -ends, color=VERMILION, linewidth=1, linestyle=":", label="moved to 0")
        axes.set_ylim(-reach, reach)
        axes.set_title(f"{name}: {_short(int(counts.sum()))} weights", fontsize=11)
        axes.set_xlabel("initial weight")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    row[0].set_ylabel("final - initial weight")
    figure.suptitle("Movement of the weights")
    figure.colorbar(image, ax=row, label="weights in a bin (logarithmic)").minorticks_off()
    _add_legend(figure, row[:1])
    return figure


def _draw(axes: Axes, histogram: Histogram) -> None:
    """Kept weights with a solid outline, pruned weights with a dashed one, so that both are visible where they
    overlap."""
    for name, counts, color, style in (
        ("pruned", histogram.pruned, ORANGE, "--"),
        ("kept", histogram.kept, BLUE, "-"),
    ):
        label = f"{name}: {_short(int(counts.sum()))}"
        if counts.any():
            axes.stairs(counts, histogram.edges, color=color, alpha=0.3, fill=True)
            axes.stairs(counts, histogram.edges, color=color, linestyle=style, linewidth=1.3, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())  # ten ticks per decade would take longer than all the rest
    axes.set_ylim(bottom=0.7)
    axes.set_ylabel("weights in a bin")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_threshold(axes: Axes, lowest: NDArray[np.float64], label: str | None = None) -> None:
    """A line at the median of the matrices' thresholds, and a band from the lowest to the highest threshold."""
    lowest = lowest[np.isfinite(lowest)]
    if not len(lowest):
        return
    middle, low, high = float(np.median(lowest)), float(lowest.min()), float(lowest.max())
    text = f"{label}: {middle:.3g}"
    if high - low > 0.002 * np.ptp(axes.get_xlim()):  # otherwise the band is too narrow to be visible
        axes.axvspan(low, high, color=BLACK, alpha=0.12, linewidth=0)
        text += f" (median; band: {low:.3g} to {high:.3g}, by matrix)"
    axes.axvline(middle, color=BLACK, linestyle=":", linewidth=1.6, label=text if label else "_nolegend_")


def _add_legend(figure: Picture, column: Iterable[Axes]) -> None:
    """One legend below the figure, with each label once."""
    entries = {}
    for axes in column:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries[label] = handle
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _short(count: int) -> str:
    """'1,234', '12.3 million'."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.1f} million"
