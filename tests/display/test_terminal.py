"""What reaches the terminal, seen from outside the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging, os, subprocess, sys
from raypp.display.terminal import StderrHandler, native_output_hidden
os.write(2, b"native before\\n")
with native_output_hidden():
    logging.basicConfig(format="%(message)s", handlers=[StderrHandler()])
    os.write(2, b"native during\\n")
    subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('child during\\\\n')"])
    print("python during", file=sys.stderr)
    logging.warning("warning during")
os.write(2, b"native after\\n")
logging.warning("warning after")
print("python after", file=sys.stderr)
raise ValueError("the end")
"""


def test_only_pythons_own_lines_are_shown_and_afterwards_everything() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    lines = ended.stderr.splitlines()
    assert lines[4:6] == ["warning after", "python after"]
    assert lines[:4] == ["native before", "python during", "warning during", "native after"]
    assert lines[-1] == "ValueError: the end"
    assert ended.returncode == 1
