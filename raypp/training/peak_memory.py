"""The most memory that a run has held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5), clear_refs


class PeakMemory:
    """The most memory that this process has held since this object was made; a process may train several times.

    On Linux the process's peak is reset, for all that read it. Where that is not possible (another system, a container
    that may not write to /proc/self/clear_refs), the peak includes what the process did before: it is then reported
    only if it has risen since, because it is the run's own peak in that case.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._before = 0 if _reset_process_peak() else _process_peak()

    def metrics(self) -> dict[str, int]:
        """The peak of resident memory in bytes, unless it is unknown; on a GPU also the peak of allocated memory."""
        held = {}
        if (peak := _process_peak()) > self._before:
            held["perf/peak_memory_bytes"] = peak
        if self.device.type == "cuda":
            held["perf/peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return held


def _reset_process_peak() -> bool:
    """Sets the peak to what is resident now; returns whether that was possible."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _process_peak() -> int:
    """Bytes of resident memory at the peak."""
    if sys.platform == "linux":
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
