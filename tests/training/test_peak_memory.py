"""The peak of a process's memory is that of the run, and not of what the process did before."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raypp.training import peak_memory
from raypp.training.peak_memory import PeakMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset a process's peak")

CPU = torch.device("cpu")
MIB = 2**20


def hold(mebibytes: int) -> None:
    """Holds so much memory, and gives it back."""
    np.ones(mebibytes * MIB, np.uint8)


def resident() -> int:
    gc.collect()  # what earlier tests left is not to be freed meanwhile
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def test_a_second_run_does_not_have_the_peak_of_the_first() -> None:
    before = resident()
    peaks = []
    for mebibytes in (512, 128):
        run = PeakMemory(CPU)
        hold(mebibytes)
        peaks.append(run.metrics()["perf/peak_memory_bytes"])
    # Within what the process may give back of earlier tests' memory meanwhile.
    assert peaks == [pytest.approx(before + held * MIB, abs=128 * MIB) for held in (512, 128)]


def test_where_the_peak_cannot_be_reset_only_a_higher_one_is_the_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = resident()
    PeakMemory(CPU)
    hold(128)
    monkeypatch.setattr(peak_memory, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    run = PeakMemory(CPU)
    hold(32)
    assert run.metrics() == {}
    hold(256)
    assert run.metrics()["perf/peak_memory_bytes"] == pytest.approx(before + 256 * MIB, abs=128 * MIB)
