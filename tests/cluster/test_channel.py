"""The channel between a command and those who train for it: the wish to leave, and warnings for the display."""

from __future__ import annotations

import logging
import time

import pytest
import ray

from raypp.cluster.channel import Channel, InterruptNotice, _ChannelActor, actor_here, warnings_to


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("stopped", [True, False])
def test_who_is_asked_to_leave_hears_whether_it_is_for_good(stopped: bool) -> None:
    channel = Channel.open()
    notice = InterruptNotice(channel)
    assert not notice()
    channel.interrupt(stopped=stopped)
    deadline = time.monotonic() + 30
    while not notice() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert notice()
    assert notice.stopped == stopped
    channel.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_command_that_ends_is_a_wish_too() -> None:
    channel = Channel.open()
    notice = InterruptNotice(channel)
    channel.close()
    deadline = time.monotonic() + 30
    while not notice() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert notice()
    assert not notice.stopped


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_line_outlasts_more_trainers_than_it_has_places() -> None:
    """A sweep's channel serves all its trials."""
    channel = Channel(actor_here(_ChannelActor, max_concurrency=2))
    for number in range(4):
        notice = InterruptNotice(channel)
        ray.get(channel.tell(number), timeout=30)
        notice.close()
    assert channel.take(0) == [0, 1, 2, 3]
    last = InterruptNotice(channel)
    channel.close()
    last.close()  # also where the command has ended


def test_warnings_are_handed_over_and_nothing_else() -> None:
    told: list[str] = []
    logger = logging.getLogger("raypp.somewhere")
    with warnings_to(told.append):
        logger.warning("checkpoint %d is damaged", 4)
        logger.info("not of interest")
    logger.warning("too late")
    assert told == ["checkpoint 4 is damaged"]


def test_what_is_warned_of_does_not_fail_where_nobody_hears(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(text: str) -> None:
        raise OSError(f"nobody hears {text!r}")

    with warnings_to(refuse):
        logging.getLogger("raypp.somewhere").warning("storage fails")
    assert "nobody hears 'storage fails'" in capsys.readouterr().err, "which is no secret either"
