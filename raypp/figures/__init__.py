"""What all figures share: colours, and the conversion of a figure to a file, an array of pixels, or a notebook image.

The colours are those of Okabe and Ito, which colour-blind people can distinguish; lines also differ in style or marker.
Figures are plain objects, without pyplot's global state and windows. Importing matplotlib takes half a second, so
modules that do not always draw import this module inside their functions.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from raypp.errors import ConfigError
from raypp.storage import Location

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"  # published results
FORMATS = (".png", ".jpg", ".svg", ".pdf")
DOTS_PER_INCH = 150
# Pillow's name and options by file ending. JPEG is written without chroma subsampling, because a mask needs the colour
# of every pixel.
PIXEL_FORMATS: dict[str, tuple[str, dict[str, int]]] = {
    ".png": ("png", {}),
    ".jpg": ("jpeg", {"quality": 95, "subsampling": 0}),
}


class NothingToDraw(ValueError):
    """There is no data for a figure."""


class Picture(Figure):
    """A figure that can be saved to a file, converted to an array of pixels, and shown in a notebook."""

    def __init__(self, width: float, height: float) -> None:
        """An empty figure; width and height in inches of `DOTS_PER_INCH` pixels."""
        super().__init__(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")

    def save(self, file: str | Path | Location) -> None:
        """Writes the figure to a path or URI; its ending names the format. ConfigError if it is not in `FORMATS`."""
        location = file if isinstance(file, Location) else Location.of(file)
        location.write_bytes(self.encoded(require_format(location.name)))

    def encoded(self, suffix: str) -> bytes:
        """The content of a file with this ending, one of `FORMATS`."""
        content = io.BytesIO()
        if suffix in PIXEL_FORMATS:  # faster than savefig, which lays out the whole figure twice
            name, options = PIXEL_FORMATS[suffix]
            Image.fromarray(self.rgb()).save(content, name, dpi=(DOTS_PER_INCH, DOTS_PER_INCH), **options)
        else:
            self.savefig(content, format=suffix.removeprefix("."))
        return content.getvalue()

    def rgb(self) -> NDArray[np.uint8]:
        """The pixels, (height, width, 3), for `wandb.Image` and Pillow."""
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _repr_png_(self) -> bytes:
        """The image that a notebook shows (IPython's protocol)."""
        return self.encoded(".png")


def require_format(name: str, field: str | None = None) -> str:
    """The lower-case ending of a figure's file name; ConfigError if it is not in `FORMATS`.

    Args:
        field: the argument that gives the name, for the message; None: the name itself.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"{field or name}: a figure's file ends in one of {', '.join(FORMATS)}, got {name!r}")
    return suffix
