"""The figure of one mask, weight by weight."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from raypp.figures import DOTS_PER_INCH, ORANGE, Picture

PRUNED, KEPT = "#1A1A1A", ORANGE
SMALLEST_SIDE = 320  # pixels; a smaller matrix is drawn with several pixels per weight
LEFT, RIGHT, BOTTOM, TOP = 110, 40, 90, 90  # margins in pixels, for labels


def pixels_per_weight(shape: tuple[int, int]) -> int:
    """Pixels per weight in each direction: 1 for matrices of real models, more for very small ones."""
    return max(1, SMALLEST_SIDE // max(shape))


def mask_box(shape: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of `mask_figure(…).rgb()` that show the mask."""
    height, width = (side * pixels_per_weight(shape) for side in shape)
    return slice(TOP, TOP + height), slice(LEFT, LEFT + width)


def mask_figure(mask: NDArray[np.bool_], name: str) -> Picture:
    """A mask (out, in) as an image of one pixel per weight, outputs downwards; kept weights are bright.

    Args:
        mask: True where a weight is kept.
        name: the name of the matrix.
    """
    rows, columns = mask_box(mask.shape)
    width, height = max(columns.stop + RIGHT, LEFT + 480), rows.stop + BOTTOM
    figure = Picture(width / DOTS_PER_INCH, height / DOTS_PER_INCH)
    figure.set_layout_engine("none")
    box = (LEFT / width, BOTTOM / height, (columns.stop - LEFT) / width, (rows.stop - TOP) / height)
    axes = figure.add_axes(box)
    # "none": no smoothing, and no resampling in SVG or PDF.
    axes.imshow(mask, cmap=ListedColormap([PRUNED, KEPT]), vmin=0, vmax=1, interpolation="none", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(f"input ({mask.shape[1]:,})", fontsize=8)
    axes.set_ylabel(f"output ({mask.shape[0]:,})", fontsize=8)
    kept = f"{np.count_nonzero(mask):,} of {mask.size:,} weights kept ({mask.mean():.2%}), bright"
    figure.text(LEFT / width, 1 - 0.3 * TOP / height, name, fontsize=9, va="center", weight="bold")
    figure.text(LEFT / width, 1 - 0.68 * TOP / height, kept, fontsize=8, va="center")
    return figure
