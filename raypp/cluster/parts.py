"""The parts that a Ray Data pipeline makes: a worker writes its part straight to the store and tells the driver of it.

A worker's ConfigError is part of its answer and is raised in the driver as it was.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from raypp.errors import ConfigError, RunFailed

# Ray is imported where it is used, after the session has set the environment that it reads.
if TYPE_CHECKING:
    import ray.data
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int | None], None]  # called with the rows done and, as soon as they are known, all rows
T = TypeVar("T")

WINDOWS_AT_ONCE = 2
LEAVE_SECONDS = 5.0  # for the threads of a pipeline that is given up to end the part that they wait for

_tokenizers: dict[str, PreTrainedTokenizerBase] = {}  # by fingerprint: a worker process runs many tasks


def mark_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each item with whether it is the last, for which one is read ahead."""
    item = next(items, None)
    while item is not None:
        upcoming = next(items, None)
        yield item, upcoming is None
        item = upcoming


def run_windows(
    windows: Iterator[tuple[Sequence[pa.Table], bool]],
    pipeline: Callable[[ray.data.Dataset], ray.data.Dataset],
    progress: Progress,
    what: str,
) -> Iterator[dict[str, Any]]:
    """Runs a pipeline over one window of parts after the other and yields its workers' answers as they come.

    Two windows run at a time: while the last tasks of one leave CPUs idle, the next one, read meanwhile, has begun.

    Args:
        windows: each a list of parts, which are the pipeline's blocks, and whether it is the last.
        progress: told all rows as soon as the last window is read.
        what: the pipeline's name, for messages.
    """
    run = _WindowRun(windows, pipeline, what)
    threads = [threading.Thread(target=run.work, name="window", daemon=True) for _ in range(WINDOWS_AT_ONCE)]
    done, running = 0, len(threads)
    try:
        for thread in threads:
            thread.start()
        while running:
            match run.told.get():
                case None:
                    running -= 1
                case BaseException() as error:
                    raise error
                case told:
                    yield told
                    done += told["rows"]
                    progress(done, run.total)
    finally:
        run.leaves.set()
        deadline = time.monotonic() + LEAVE_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


class _WindowRun:
    """What the threads of `run_windows` share. Each takes a window and runs it to its end, until none is left."""

    def __init__(
        self,
        windows: Iterator[tuple[Sequence[pa.Table], bool]],
        pipeline: Callable[[ray.data.Dataset], ray.data.Dataset],
        what: str,
    ) -> None:
        self.windows, self.pipeline, self.what = windows, pipeline, what
        self.total: int | None = None
        """All rows, once the last window is read."""
        self.told: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
        """Answers; None where a thread has ended, or what it has failed with."""
        self.leaves = threading.Event()
        self._reading = threading.Lock()
        self._rows = 0

    def work(self) -> None:
        try:
            while self._run_next():
                pass
        except BaseException as error:  # raised again where the answers are read
            self.told.put(error)
        else:
            self.told.put(None)

    def _run_next(self) -> bool:
        """Runs a window, of which nothing is held when the next one is read; False where none is left."""
        import ray.data

        window = self._next()
        if not window:
            return False
        rows = sum(part.num_rows for part in window)
        for told in collect(self.pipeline(ray.data.from_arrow(window)), rows, None, self.what):
            if self.leaves.is_set():
                return False
            self.told.put(told)
        return True

    def _next(self) -> list[pa.Table]:
        with self._reading:
            if self.leaves.is_set() or self.total is not None:
                return []
            window, is_last = next(self.windows, ([], True))
            self._rows += sum(part.num_rows for part in window)
            if is_last:
                self.total = self._rows
            return [] if self.leaves.is_set() else list(window)  # reading may have taken long


def answer(make: Callable[[], dict[str, Any]]) -> pa.Table:
    """Makes a part and tells the driver about it, or what went wrong: a table of one row.

    Args:
        make: returns `rows`, those that it has worked on, and whatever else the driver is to know, as JSON has it.
    """
    try:
        told = make()
    except ConfigError as error:
        told = {"problems": list(error.problems)}
    except Exception as error:  # raised again in the driver, without Ray's wrapping
        told = {"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return pa.table({"answer": [json.dumps(told)]})


def collect(answers: ray.data.Dataset, rows: int, progress: Progress | None, what: str) -> Iterator[dict[str, Any]]:
    """Runs a pipeline and yields its workers' answers as they come."""
    from ray.exceptions import RayError

    # Importing ray.data has set its logger to talk; it is to be as quiet as Ray itself.
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    answers.context.enable_progress_bars = False
    done = 0
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            for told in map(json.loads, batch["answer"].to_pylist()):
                if "problems" in told:
                    raise ConfigError(told["problems"])
                if "failure" in told:
                    cause = RuntimeError(told["traceback"])
                    raise RunFailed(f"{what}: a worker failed: {told['failure']}") from cause
                yield told
                done += told["rows"]
                if progress is not None:
                    progress(done, rows)
    except RayError as error:
        raise RunFailed(f"{what}: a worker was lost: {str(error).strip().splitlines()[0]}") from error
    assert done == rows, f"{what}: {rows} rows went out, {done} came back"


def tokenizer_here(tokenizer: ray.ObjectRef, fingerprint: str) -> PreTrainedTokenizerBase:
    """A tokenizer in this worker process, fetched once."""
    import ray

    if fingerprint not in _tokenizers:
        # As many tasks as CPUs run here already; threads of their own would only be in each other's way.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _tokenizers[fingerprint] = ray.get(tokenizer)
    return _tokenizers[fingerprint]
