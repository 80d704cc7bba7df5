"""The folder in which Ray Train keeps its own files of a run, and Ray Tune those of a sweep. raypp never reads them."""

from __future__ import annotations

import contextlib

from raypp.errors import ConfigError, StorageFailed
from raypp.locks import locked
from raypp.storage import Location, tidying

SCRATCH = "ray"  # its name in the folder of the run or sweep


def delete_scratch(folder: Location) -> None:
    """Removes it from the folder of a run or sweep. This process must hold the folder, and Ray must have stopped
    writing there."""
    scratch = folder / SCRATCH
    with tidying(scratch):
        scratch.delete()


def delete_leftovers(folder: Location) -> None:
    """Removes it from the folder of a finished run or sweep, where a killed command left it. Does nothing if another
    process holds the folder, or if this process may not write there."""
    with tidying(folder):
        if not (folder / SCRATCH).is_folder():
            return
        with contextlib.suppress(ConfigError, StorageFailed), locked(folder):
            delete_scratch(folder)
