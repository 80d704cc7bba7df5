"""The parts that a Ray Data pipeline makes: a worker writes its part straight to the store and tells the driver of it.

A worker's ConfigError is part of its answer and is raised in the driver as it was.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from raypp.errors import ConfigError, RunFailed

# Ray is imported where it is used, after the session has set the environment that it reads.
if TYPE_CHECKING:
    import ray.data
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Progress = Callable[[int, int | None], None]  # called with the rows done and, as soon as they are known, all rows
IsLast = Callable[[], bool]

_tokenizers: dict[str, PreTrainedTokenizerBase] = {}  # by fingerprint: a worker process runs many tasks


def read_ahead(windows: Iterator[T]) -> Iterator[tuple[T, IsLast]]:
    """The same, each with what tells whether it is known to be the last: the next is read while this is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="source") as thread:
        window = next(windows, None)
        while window is not None:
            upcoming = thread.submit(next, windows, None)
            yield window, lambda upcoming=upcoming: upcoming.done() and upcoming.result() is None  # type: ignore[misc]
            window = upcoming.result()


def progress_after(before: int, rows: int, is_last: IsLast, progress: Progress) -> Progress:
    """Progress that goes on where an earlier window ended; all rows are known as soon as this window is the last."""
    return lambda done, _: progress(before + done, before + rows if is_last() else None)


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


def collect(answers: ray.data.Dataset, rows: int, progress: Progress, what: str) -> Iterator[dict[str, Any]]:
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
