"""The peak of a process's memory is that of the run, and not of what the process did before.

Each test's program has a process to itself: that of the tests may give back any amount of memory at any time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset a process's peak")

MIB = 2**20
BEGINNING = """
import json
from pathlib import Path

import numpy as np
import torch

from raypp.training import peak_memory
from raypp.training.peak_memory import PeakMemory

CPU = torch.device("cpu")


def hold(mebibytes):  # and gives it back
    np.ones(mebibytes * 2**20, np.uint8)


(line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
before = int(line.split()[1]) * 1024
"""


def metrics_of(program: str) -> tuple[int, list[dict[str, Any]]]:
    """Runs a program that appends metrics to `found`. Returns the bytes resident before it, and the metrics."""
    script = f"{BEGINNING}found = []\n{program}\nprint(json.dumps([before, found]))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, found = json.loads(ran.stdout)
    return before, found


def test_a_second_run_does_not_have_the_peak_of_the_first() -> None:
    before, found = metrics_of("""
for mebibytes in (512, 128):
    run = PeakMemory(CPU)
    hold(mebibytes)
    found.append(run.metrics())
""")
    peaks = [metrics["perf/peak_memory_bytes"] for metrics in found]
    assert peaks == [pytest.approx(before + held * MIB, abs=32 * MIB) for held in (512, 128)]


def test_where_the_peak_cannot_be_reset_only_a_higher_one_is_the_runs() -> None:
    before, found = metrics_of("""
hold(128)
peak_memory.CLEAR_REFS = Path("/absent/clear_refs")
run = PeakMemory(CPU)
hold(32)
found.append(run.metrics())
hold(256)
found.append(run.metrics())
""")
    assert found == [{}, {"perf/peak_memory_bytes": pytest.approx(before + 256 * MIB, abs=32 * MIB)}]
