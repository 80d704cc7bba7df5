"""The label of a metric in tables and figures."""

from __future__ import annotations


def metric_label(key: str) -> str:
    """The label of a metric, given its key: `matched/accuracy` for `eval/matched/accuracy`."""
    return key.removeprefix("eval/")
