"""The channel between a command and the processes that train for it: interrupt requests, and forwarded warnings."""

from __future__ import annotations

import logging
import time

import pytest
import ray

from raypp.cluster.channel import Channel, InterruptNotice, _ChannelActor, actor_here, forward_warnings


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("stopped", [True, False])
def test_an_interrupt_request_says_whether_it_is_for_good(stopped: bool) -> None:
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
def test_a_command_that_ends_is_an_interrupt_request_too() -> None:
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
def test_a_channel_serves_more_trainers_than_its_concurrency() -> None:
    """A sweep's channel serves all its trials."""
    channel = Channel(actor_here(_ChannelActor, max_concurrency=2))
    for number in range(4):
        notice = InterruptNotice(channel)
        ray.get(channel.send(number), timeout=30)
        notice.close()
    assert channel.receive(0) == [0, 1, 2, 3]
    last = InterruptNotice(channel)
    channel.close()
    last.close()  # also where the command has ended


def test_warnings_are_handed_over_and_nothing_else() -> None:
    sent: list[str] = []
    logger = logging.getLogger("raypp.somewhere")
    with forward_warnings(sent.append):
        logger.warning("checkpoint %d is damaged", 4)
        logger.info("not of interest")
    logger.warning("too late")
    assert sent == ["checkpoint 4 is damaged"]


def test_what_is_warned_of_does_not_fail_where_nobody_hears(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(text: str) -> None:
        raise OSError(f"nobody hears {text!r}")

    with forward_warnings(refuse):
        logging.getLogger("raypp.somewhere").warning("storage fails")
    assert "nobody hears 'storage fails'" in capsys.readouterr().err, "which is no secret either"
