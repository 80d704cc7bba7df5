"""Runs a job: in this process, or on the workers of a Ray TorchTrainer. All of Ray Train's wiring is here."""

from __future__ import annotations

import functools
import logging
import queue
import threading
import uuid
from collections.abc import Callable
from typing import Any

import torch

from raypp.cluster.session import Session
from raypp.errors import ConfigError, RunFailed, StorageFailed
from raypp.events import Message, Reported, WorkersPlaced
from raypp.train import Job, fit
from raypp.worker import Worker

EventHandler = Callable[[Any], None]
CONTROLLER_FAILURES = 2  # how often Ray Train's controller may fail
STOP_SECONDS = 30.0  # for workers to notice, at one of their next events, that nobody listens any more


def run_job(
    job: Job,
    session: Session,
    on_event: EventHandler,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    *,
    may_stop: bool = False,
) -> dict[str, Any]:
    """Trains a job to its end and returns its result.

    Args:
        session: started, and found to have the resources, unless `workers: 0`.
        on_report: called with the metrics of every evaluation; what it raises ends the job.
        may_stop: whether it may: then the evaluation's checkpoint is written before.

    Raises:
        RunFailed: training failed for good; the same command resumes it.
    """
    if job.experiment.cluster.max_workers == 0:
        device = torch.device("cuda" if job.experiment.cluster.gpus_per_worker else "cpu")
        return fit(job, Worker(device=device, on_event=on_event, on_report=on_report or _ignore, may_stop=may_stop))
    return _run_on_workers(job, session, on_event, on_report or _ignore, may_stop)


def _run_on_workers(
    job: Job, session: Session, on_event: EventHandler, on_report: Callable[[dict[str, Any]], None], may_stop: bool
) -> dict[str, Any]:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Empty, Queue

    settings = job.experiment.cluster
    events = Queue(actor_options={"num_cpus": 0})
    scratch = job.run / "ray"
    workers = settings.workers if isinstance(settings.workers, int) else tuple(settings.workers)
    trainer = TorchTrainer(
        # Not as its configuration, which Ray Train's controller opens, too: it would import all of raypp first.
        functools.partial(train_worker, job, events, may_stop),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": session.cpus_per_worker(),
                **({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}),
            },
            placement_strategy=settings.placement.upper(),
        ),
        run_config=RunConfig(
            # A name of its own every time: resuming is by the run's own checkpoints, the same for every kind of worker.
            name=uuid.uuid4().hex,
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            logging_config=None if session.verbose else LoggingConfig(log_level="ERROR"),
        ),
    )
    thread, outcome = start_fit(trainer.fit)
    try:
        while thread.is_alive() or not events.empty():
            try:
                event = events.get(timeout=0.5)
            except (Empty, queue.Empty):
                continue
            if isinstance(event, Reported):
                on_report(event.metrics)
            else:
                on_event(event)
    except BaseException:
        # The workers notice and end: else they would train on, on a cluster of others, with a run that is nobody's; and
        # Ray of our own must not be shut down under the trainer's feet.
        events.shutdown(force=True)
        thread.join(STOP_SECONDS)
        raise
    events.shutdown(force=True)
    scratch.delete()
    if "error" in outcome:
        raise _explained(outcome["error"]) from outcome["error"]
    returned = outcome["result"].return_value
    if "failed" in returned:
        raise RunFailed(returned["failed"])
    return dict(returned["result"])


def start_fit(fit: Callable[[], Any]) -> tuple[threading.Thread, dict[str, Any]]:
    """Runs a trainer's or tuner's fit() in a thread of its own: in the main thread it would take over Ctrl-C.

    Returns:
        The thread, and where its `result` or `error` will be when it has ended.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = fit()
        except BaseException as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    return thread, outcome


def _explained(error: BaseException) -> Exception:
    """The user's or the run's own error, out of Ray Train's wrapping."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for cause in causes:
        inner = getattr(cause, "cause", None) or cause
        if isinstance(inner, ConfigError):
            return inner
    cause = causes[0]
    return RunFailed(f"{type(cause).__name__}: {str(cause).strip()}")


def train_worker(job: Job, events: Any, may_stop: bool) -> dict[str, Any]:
    """What every TorchTrainer worker runs: the loop, with this worker's place in the group."""
    import ray.train
    import ray.util
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    told: list[Any] = []

    def tell(event: Any) -> None:
        # The queue's own put waits for an answer: some milliseconds that a step should not take. So the answer is
        # looked at before the next event; it is an error when the command has ended.
        if told and ray.wait(told, timeout=0)[0]:
            ray.get(told.pop())
        told[:] = [events.actor.put_nowait.remote(event)]

    def report(metrics: dict[str, Any]) -> None:
        ray.train.report(metrics)
        if first:
            tell(Reported(metrics))

    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=get_device(),
        on_event=tell if first else _ignore,
        on_report=report,
        may_stop=may_stop,
    )
    if first:
        tell(WorkersPlaced(ray.util.get_current_placement_group().id.hex()))
        logging.getLogger("raypp").addHandler(_ToDisplay(tell))
    try:
        result = fit(job, worker)
        events.size()  # answered after all that was told before: nothing is lost
        return {"result": result}
    except RayActorError:
        return {"failed": "the command that started this run has ended"}
    except StorageFailed:
        raise
    except RunFailed as failure:
        # Every worker fails alike and trying again would not help: returned, so that Ray Train does not.
        return {"failed": str(failure)}


class _ToDisplay(logging.Handler):
    """Sends warnings to the display: a worker's own log is hidden."""

    def __init__(self, on_event: EventHandler) -> None:
        super().__init__(logging.WARNING)
        self.on_event = on_event

    def emit(self, record: logging.LogRecord) -> None:
        self.on_event(Message(record.getMessage()))


def _ignore(_: Any) -> None:
    """Nobody wants to know."""
