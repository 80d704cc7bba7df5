"""Windows of a Ray Data pipeline: all of them are run, and what goes wrong in one ends them all."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray._private.internal_api import memory_summary

from raypp.cluster.parts import respond, run_windows
from raypp.cluster.windows import mark_last
from raypp.errors import ConfigError, RunFailed

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

DEADLINE_SECONDS = 60


def part(*values: int) -> pa.Table:
    return pa.table({"value": values})


def summed(parts: Any) -> Any:
    """A pipeline that sums each part; 13 is bad luck, and 99 takes its time."""

    def add(table: pa.Table) -> pa.Table:
        def made() -> dict[str, Any]:
            values = table["value"].to_pylist()
            if 13 in values:
                raise ConfigError("13 is not allowed")
            if 99 in values:
                time.sleep(1)
            return {"rows": len(values), "sum": sum(values)}

        return respond(made)

    return parts.map_batches(add, batch_size=None, batch_format="pyarrow")


def window_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "window"]


def test_every_part_of_every_window_is_run_and_all_rows_are_known_once_the_last_is_read() -> None:
    seen: list[tuple[int, int | None]] = []
    windows = mark_last(iter([[part(1, 2), part(3)], [part(4)], [part(5), part(99)]]))
    responses = list(run_windows(windows, summed, lambda done, total: seen.append((done, total)), "sums"))
    assert sorted(each["sum"] for each in responses) == [3, 3, 4, 5, 99]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (6, 6)
    assert not window_threads()


def test_the_blocks_of_a_finished_window_are_given_back_however_few_objects_python_makes() -> None:
    def stored() -> int:
        """The number of objects in Ray's object store."""
        summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
        return int(re.findall(r"(\d+) objects", summary)[0])

    gc.collect()
    before = stored()
    gc.disable()  # as good as a window that makes few objects
    try:
        windows = mark_last(iter([[part(number)] for number in range(8)]))
        assert len(list(run_windows(windows, summed, lambda done, total: None, "sums"))) == 8
        deadline = time.monotonic() + DEADLINE_SECONDS
        while stored() > before:
            assert time.monotonic() < deadline, "blocks are still there"
            time.sleep(0.1)
    finally:
        gc.enable()


def test_what_cannot_be_read_ends_the_window_that_runs_meanwhile() -> None:
    def windows() -> Iterator[tuple[list[pa.Table], bool]]:
        yield [part(99), part(99), part(1)], False
        raise ConfigError("line 7 cannot be read")

    with pytest.raises(ConfigError, match="line 7"):
        list(run_windows(windows(), summed, lambda done, total: None, "sums"))
    assert not window_threads()


def test_nothing_is_begun_after_a_worker_has_failed() -> None:
    failed, begun = threading.Event(), []

    def windows() -> Iterator[tuple[list[pa.Table], bool]]:
        yield [part(13)], False
        assert failed.wait(DEADLINE_SECONDS)  # reading takes until the first window has failed
        yield [part(1)], True

    def noted(parts: Any) -> Any:
        begun.append(parts)
        return summed(parts)

    with pytest.raises(ConfigError, match="13 is not allowed"):
        list(run_windows(windows(), noted, lambda done, total: None, "sums"))
    failed.set()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while window_threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not window_threads()
    assert len(begun) == 1


def test_a_worker_that_breaks_is_told_of() -> None:
    def divided(table: pa.Table) -> pa.Table:
        return respond(lambda: {"rows": table.num_rows // 0})

    def broken(parts: Any) -> Any:
        return parts.map_batches(divided, batch_size=None, batch_format="pyarrow")

    with pytest.raises(RunFailed, match="sums: a worker failed: ZeroDivisionError"):
        list(run_windows(mark_last(iter([[part(1)]])), broken, lambda done, total: None, "sums"))
