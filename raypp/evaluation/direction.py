"""Whether higher or lower values of a metric are better."""

from __future__ import annotations

LOWER_IS_BETTER = ("perplexity",)
"""The metrics whose lower values are better. Higher is better for all others."""


def lower_is_better(metric: str) -> bool:
    """Whether lower values of a metric are better. `metric` is its name or its key (`eval/perplexity`)."""
    return metric.rpartition("/")[2] in LOWER_IS_BETTER


def merit(metric: str, value: float) -> float:
    """The value, or its negative if lower is better, so that a higher merit is always better."""
    return -value if lower_is_better(metric) else value
