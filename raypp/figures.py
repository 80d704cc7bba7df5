"""What all figures share: colours, and how a figure becomes a file.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; lines also differ in style or marker.
Figures are plain objects: pyplot, with its global state and its windows, is not used.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from raypp.errors import ConfigError
from raypp.storage import Location

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"  # what is not ours: published results
FORMATS = (".png", ".jpg", ".svg", ".pdf")


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
    figure.savefig(content, dpi=150, format=file.name.rsplit(".", 1)[-1].lower())
    file.write_bytes(content.getvalue())
