"""Times in readable form."""

from __future__ import annotations


def clock_time(seconds: float) -> str:
    """'1:05', '2:00:00'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def duration(seconds: float) -> str:
    """'41.2 s', '4:05'."""
    return f"{seconds:.1f} s" if seconds < 100 else clock_time(seconds)
