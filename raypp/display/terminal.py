"""Hides the native code's output from the terminal: no log level hides some lines of Ray's C++ log.

With `-v` nothing is hidden.
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
    """Hides what this process's native code and its child processes write to stderr.

    Python's own stderr still goes where it went before. If `sys.stderr` was replaced, nothing is hidden.
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
    """Writes log records to the current `sys.stderr`."""

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
