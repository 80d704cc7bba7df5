"""Who may write to the terminal: Python, not the native code below it (Ray's C++ log has lines that no level hides).

`-v` leaves everything as it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def native_output_hidden() -> Iterator[None]:
    """While it lasts, what this process's native code and its children write to stderr is not shown.

    Python's own stderr goes on to where it went. Where somebody has put another one in its place, nothing is changed.
    """
    if not _is_descriptor(sys.stderr, 2):
        yield
        return
    python_stderr = sys.stderr
    python_stderr.flush()
    with (
        tempfile.TemporaryFile() as hidden,
        os.fdopen(os.dup(2), "w", 1, python_stderr.encoding, python_stderr.errors) as shown,
    ):
        os.dup2(hidden.fileno(), 2)
        sys.stderr = shown
        try:
            yield
        finally:
            shown.flush()
            os.dup2(shown.fileno(), 2)
            sys.stderr = python_stderr


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes log records to whatever `sys.stderr` is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _is_descriptor(stream: TextIO | None, descriptor: int) -> bool:
    try:
        return stream is not None and stream.fileno() == descriptor
    except (OSError, ValueError):  # not a file, or closed
        return False
