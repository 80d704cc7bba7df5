"""The parts that a Ray Data pipeline makes: a worker writes its part to the store and responds to the driver.

If a worker raises a ConfigError, its response carries the problems, and the driver raises the same ConfigError.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypp.errors import ConfigError, RunFailed

# Ray is imported where it is used, after the session has set the environment that it reads.
if TYPE_CHECKING:
    import ray.data
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int | None], None]  # called with the rows done and all rows, None until they are known

WINDOWS_AT_ONCE = 2
THREADS_END_SECONDS = 5.0  # for the threads of an abandoned pipeline to end the part that they wait for

_tokenizers: dict[str, PreTrainedTokenizerBase] = {}  # by fingerprint: a worker process runs many tasks


def run_windows(
    windows: Iterator[tuple[Sequence[pa.Table], bool]],
    pipeline: Callable[[ray.data.Dataset], ray.data.Dataset],
    progress: Progress,
    what: str,
) -> Iterator[dict[str, Any]]:
    """Runs a pipeline over one window of parts after the other and yields its workers' responses as they arrive.

    Two windows run at a time: the second one uses the CPUs that the last tasks of the first one leave idle.

    Args:
        windows: each is a list of parts, which become the pipeline's blocks, and whether it is the last.
        progress: gets the number of all rows as soon as the last window is read.
        what: the pipeline's name, for messages.
    """
    run = _WindowRun(windows, pipeline, what)
    threads = [threading.Thread(target=run.work, name="window", daemon=True) for _ in range(WINDOWS_AT_ONCE)]
    done, running = 0, len(threads)
    try:
        for thread in threads:
            thread.start()
        while running:
            match run.responses.get():
                case None:
                    running -= 1
                case BaseException() as error:
                    raise error
                case response:
                    yield response
                    done += response["rows"]
                    progress(done, run.total)
    finally:
        run.must_stop.set()
        deadline = time.monotonic() + THREADS_END_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


class _WindowRun:
    """State shared by the threads of `run_windows`. Each thread runs one window after the other until none is left."""

    def __init__(
        self,
        windows: Iterator[tuple[Sequence[pa.Table], bool]],
        pipeline: Callable[[ray.data.Dataset], ray.data.Dataset],
        what: str,
    ) -> None:
        self.windows, self.pipeline, self.what = windows, pipeline, what
        self.total: int | None = None
        """The number of all rows, once the last window is read."""
        self.responses: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
        """Workers' responses; None or an exception when a thread has ended."""
        self.must_stop = threading.Event()
        self._reading = threading.Lock()
        self._rows = 0

    def work(self) -> None:
        try:
            while self._run_next():
                # Datasets of Ray Data are in reference cycles, so their blocks stay in the object store until Python
                # looks for cycles. It does this after a number of new objects, and a window makes few.
                gc.collect()
        except BaseException as error:  # raised again where the responses are read
            self.responses.put(error)
        else:
            self.responses.put(None)

    def _run_next(self) -> bool:
        """Runs a window and drops it before the next one is read. Returns False if none is left."""
        import ray.data

        window = self._next()
        if not window:
            return False
        rows = sum(part.num_rows for part in window)
        for response in collect(self.pipeline(ray.data.from_arrow(window)), rows, None, self.what):
            if self.must_stop.is_set():
                return False
            self.responses.put(response)
        return True

    def _next(self) -> list[pa.Table]:
        with self._reading:
            if self.must_stop.is_set() or self.total is not None:
                return []
            window, is_last = next(self.windows, ([], True))
            self._rows += sum(part.num_rows for part in window)
            if is_last:
                self.total = self._rows
            return [] if self.must_stop.is_set() else list(window)  # reading may have taken long


def respond(make: Callable[[], dict[str, Any]]) -> pa.Table:
    """Makes a part and responds to the driver: a table of one row with the response, or with the error, as JSON.

    Args:
        make: returns the response: `rows`, the number of input rows, and what else the driver needs.
    """
    try:
        response = make()
    except ConfigError as error:
        response = {"problems": list(error.problems)}
    except Exception as error:  # raised again in the driver, without Ray's wrapping
        response = {"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return pa.table({"response": [json.dumps(response)]})


def collect(responses: ray.data.Dataset, rows: int, progress: Progress | None, what: str) -> Iterator[dict[str, Any]]:
    """Runs a pipeline and yields its workers' responses as they arrive."""
    from ray.exceptions import RayError

    # Importing ray.data lowers its logger's level; it must be as quiet as Ray itself.
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    responses.context.enable_progress_bars = False
    done = 0
    try:
        for batch in responses.iter_batches(batch_size=None, batch_format="pyarrow"):
            for response in map(json.loads, batch["response"].to_pylist()):
                if "problems" in response:
                    raise ConfigError(response["problems"])
                if "failure" in response:
                    cause = RuntimeError(response["traceback"])
                    raise RunFailed(f"{what}: a worker failed: {response['failure']}") from cause
                yield response
                done += response["rows"]
                if progress is not None:
                    progress(done, rows)
    except RayError as error:
        raise RunFailed(f"{what}: a worker was lost: {str(error).strip().splitlines()[0]}") from error
    assert done == rows, f"{what}: {rows} rows were sent, {done} were processed"


def tokenizer_here(tokenizer: ray.ObjectRef, fingerprint: str) -> PreTrainedTokenizerBase:
    """The tokenizer in this worker process, which fetches it once."""
    import ray

    if fingerprint not in _tokenizers:
        # There are as many tasks as CPUs already; threads of the tokenizer would only compete with them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _tokenizers[fingerprint] = ray.get(tokenizer)
    return _tokenizers[fingerprint]
