"""What a trial tells the command while it runs."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from raypp.cluster.channel import forward_warnings
from raypp.cluster.trial import _Reporter


def test_warnings_travel_with_the_next_report_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", reports.append)
    task: Any = SimpleNamespace(job=SimpleNamespace(run=SimpleNamespace(name="run")), stratum="dense")
    reporter = _Reporter(task)
    logger = logging.getLogger("raypp.somewhere")
    with forward_warnings(reporter.warn):
        logger.warning("first")
        reporter.report()
        logger.warning("second")
        reporter.report()
        reporter.report()
    assert [report["messages"] for report in reports] == [("first",), ("second",), ()]
