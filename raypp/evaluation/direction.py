"""Which of two values of a metric is the better one."""

from __future__ import annotations

LOWER_IS_BETTER = ("perplexity",)
"""The metrics of which less is better; of all others more is."""


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better; by its name or its key (`eval/perplexity`)."""
    return metric.rpartition("/")[2] in LOWER_IS_BETTER


def merit(metric: str, value: float) -> float:
    """The value, or its negative where less is better: of two merits the higher is the better one."""
    return -value if lower_is_better(metric) else value
