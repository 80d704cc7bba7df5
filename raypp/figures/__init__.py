"""What all figures share: colours, and how a figure becomes a file, an array of pixels, or a picture in a notebook.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; lines also differ in style or marker.
Figures are plain objects: pyplot, with its global state and its windows, is not used. matplotlib takes half a second to
import, so whoever does not always draw imports this module where it does.
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
GREY = "#767676"  # what is not ours: published results
FORMATS = (".png", ".jpg", ".svg", ".pdf")
DOTS_PER_INCH = 150
# By ending: Pillow's name and options. A JPEG has a colour for each pixel, as a mask has, and not one for four of them.
PIXEL_FORMATS: dict[str, tuple[str, dict[str, int]]] = {
    ".png": ("png", {}),
    ".jpg": ("jpeg", {"quality": 95, "subsampling": 0}),
}


class NothingToDraw(ValueError):
    """Nothing that a figure shows is there."""


class Picture(Figure):
    """A figure that knows its forms: a file by its ending, an array of pixels, and itself in a notebook's cell."""

    def __init__(self, width: float, height: float) -> None:
        """An empty figure of so many inches, each of `DOTS_PER_INCH` pixels."""
        super().__init__(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")

    def save(self, file: str | Path | Location) -> None:
        """Writes a file anywhere, in the format that its ending names; ConfigError for any other than `FORMATS`."""
        location = file if isinstance(file, Location) else Location.of(file)
        location.write_bytes(self.encoded(require_format(location.name)))

    def encoded(self, suffix: str) -> bytes:
        """The content of a file with this ending, one of `FORMATS`."""
        content = io.BytesIO()
        if suffix in PIXEL_FORMATS:  # savefig would go through the whole figure twice, the first time to draw nothing
            name, options = PIXEL_FORMATS[suffix]
            Image.fromarray(self.rgb()).save(content, name, dpi=(DOTS_PER_INCH, DOTS_PER_INCH), **options)
        else:
            self.savefig(content, format=suffix.removeprefix("."))
        return content.getvalue()

    def rgb(self) -> NDArray[np.uint8]:
        """Its pixels, (height, width, 3), as `wandb.Image` and Pillow take them."""
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _repr_png_(self) -> bytes:
        """What a notebook shows of it (IPython's protocol)."""
        return self.encoded(".png")


def require_format(name: str, field: str | None = None) -> str:
    """The ending of a figure's file name, in small letters; ConfigError for any other than `FORMATS`.

    Args:
        field: what the message calls the name; None: the name itself.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"{field or name}: a figure's file ends in one of {', '.join(FORMATS)}, got {name!r}")
    return suffix
