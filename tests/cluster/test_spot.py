"""A spot machine's warning, from a service that answers as AWS's does. (That a run then saves its step and goes on
elsewhere, from warning to result: test_faults.py.)"""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from metadata_service import metadata_service
from whole_runs import wait_for

from raypp.cluster import spot


def test_a_warning_is_heard_with_its_time_and_nothing_else_is_taken_for_one() -> None:
    ends_at = datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)
    with metadata_service() as service:
        assert spot.interruption_time(service.url) is None
        service.ends_at = ends_at
        assert spot.interruption_time(service.url) == ends_at.timestamp()
        service.fails = True
        with pytest.raises(OSError, match="500"):
            spot.interruption_time(service.url)


def test_a_service_that_fails_for_a_while_is_asked_on_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spot, "POLL_SECONDS", 0.01)
    ends_at = datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)
    heard: list[float] = []
    with metadata_service() as service:
        service.ends_at, service.fails = ends_at, True
        waiting = threading.Thread(target=lambda: heard.append(spot.wait_for_notice(service.url)), daemon=True)
        waiting.start()
        wait_for(lambda: service.failed > 2, "questions that are not answered")
        assert waiting.is_alive()
        service.fails = False
        waiting.join(30)
    assert heard == [ends_at.timestamp()]
    assert caplog.text.count("does not respond as expected, raypp keeps asking") == 1
