"""Runs a job in this process, or supervises the workers of a Ray TorchTrainer that run it."""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch

from raypp.cluster.background import in_background
from raypp.cluster.channel import Channel
from raypp.cluster.deadlines import FAILED_STOP_SECONDS, FIT_SECONDS, INTERRUPTED_STOP_SECONDS, PATIENCE_SECONDS
from raypp.cluster.group_sizes import GroupSizes
from raypp.cluster.outcome import Failed, Finished, InterruptedAt, Outcome
from raypp.cluster.placement_groups import free_group, slots_name
from raypp.cluster.scratch import SCRATCH, delete_scratch
from raypp.cluster.session import Session
from raypp.cluster.train_controller import kill_controllers
from raypp.cluster.train_worker import train_worker
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.errors import (
    ConfigError,
    Interrupted,
    PlacementLost,
    RunFailed,
    StorageFailed,
    WorkersLost,
    WorkersPreempted,
)
from raypp.events import EventHandler, Message, Reported, WorkersPlaced, ignore, never, say
from raypp.interrupts import STILL_WAITS, STOPPING, deferred_interrupts
from raypp.storage import Location
from raypp.training.checkpoint import Checkpoints
from raypp.training.job import Job
from raypp.training.loop import fit
from raypp.training.worker import Worker

CONTROLLER_LOSSES = 2  # how often the process of Ray Train's controller may be lost
POLL_SECONDS = 0.5
REASON_LENGTH = 200  # characters shown of the reason why a worker was lost


@dataclass(frozen=True)
class Supervision:
    """What is called while a job runs, and when it must stop."""

    on_event: EventHandler
    on_report: Callable[[dict[str, Any]], None] = ignore
    """Gets the metrics of every evaluation. An exception that it raises ends the job."""
    may_be_stopped: bool = False
    """Whether `on_report` may end the job. If so, the log of an evaluation is durable before it is reported."""
    is_interrupted: Callable[[], bool] = never
    """Whether the job must stop, apart from an interrupt of this process."""
    stop_seconds: float = INTERRUPTED_STOP_SECONDS
    """How long workers have to save their current step when this process must end; math.inf: as long as they need."""


def run_job(job: Job, session: Session, supervision: Supervision, quota: WorkerQuota | None = None) -> dict[str, Any]:
    """Trains a job to its end and returns its result.

    Args:
        session: has been started and has the resources, unless `workers: 0`.
        quota: the workers that the job may have; None: as many as the cluster has resources for.

    Raises:
        KeyboardInterrupt: this process was interrupted; the current step is saved if there was time for it.
        Interrupted: `is_interrupted` returned True; the current step is saved.
        FailsAgain: training failed, and the same command would fail again.
        RunFailed: training failed for another reason; the same command resumes it.
    """
    if job.experiment.cluster.max_workers:
        return _run_on_workers(job, session, supervision, quota)
    with deferred_interrupts(lambda text: supervision.on_event(Message(text))) as interrupted:
        worker = Worker(
            device=torch.device("cuda" if job.experiment.cluster.gpus_per_worker else "cpu"),
            on_event=supervision.on_event,
            on_report=supervision.on_report,
            is_interrupted=lambda: interrupted() or supervision.is_interrupted(),
            may_be_stopped=supervision.may_be_stopped,
        )
        try:
            result = fit(job, worker)
        except Interrupted as left:
            if not interrupted():
                raise
            raise _interrupted(left.step) from None
        delete_scratch(job.run)  # an earlier command may have trained with workers and may have been killed
        if interrupted():  # too late for this run, but the next one, a teacher's student, is not started
            raise KeyboardInterrupt
        return result


def _interrupted(step: int) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"after step {step}, which is saved")


def _run_on_workers(job: Job, session: Session, supervision: Supervision, quota: WorkerQuota | None) -> dict[str, Any]:
    """Runs one group of workers after another until one has finished the job.

    A group ends when it loses a worker, when one of its nodes is preempted, when Ray Train's controller dies, or when
    it should have another size. The next group starts from the last checkpoint as soon as there are resources for it.
    """
    from ray.exceptions import RayActorError

    settings = job.experiment.cluster
    resources = session.worker_resources()  # read once: `auto` divides the CPUs, which are fewer when a node is lost
    quota = quota or WorkerQuota.alone(settings.min_workers, settings.max_workers)
    sizes = GroupSizes(settings, resources, quota, slots_name(job.run))
    lost = failures = 0
    news: list[str] = []

    def say(text: str | None = None) -> None:
        supervision.on_event(Message(f"{job.phase}: {'; '.join([*news, *([text] if text else [])])}"))
        news.clear()

    while True:
        size = sizes.next_size(supervision.is_interrupted, say)
        if not size:
            saved = Checkpoints(job.run / "checkpoints", settings.keep_checkpoints).steps()
            raise Interrupted(max(saved, default=0))
        if settings.is_elastic and (news or size < settings.max_workers):
            news.append(f"{size} of {settings.max_workers} workers train")
        if news:
            say()
        try:
            outcome, resizes = _run_group(job, session, resources, sizes, supervision)
        except RayActorError as error:
            lost += 1
            if lost > CONTROLLER_LOSSES:
                raise RunFailed(f"Ray Train's controller was lost {lost} times: {str(error).strip()}") from error
            news.append("Ray Train's controller was lost; the run continues from its last checkpoint")
            continue
        except PlacementLost:
            news.append("another command has taken the resources")
            continue
        except WorkersLost as error:
            failures += not isinstance(error, WorkersPreempted)
            if failures > settings.max_failures:
                raise
            news.append(f"a worker was lost ({_last_line(error)}); the run continues from its last checkpoint")
            continue
        match outcome:
            case Finished(result):
                return result
            case Failed(failure):
                raise failure
            case InterruptedAt(step) if supervision.is_interrupted():
                raise Interrupted(step)
            case InterruptedAt(step) if resizes:
                news.append(f"{resizes}; step {step} is saved")
            case InterruptedAt(step):
                why = "a node is preempted, or cannot reach the command"
                news.append(f"{why}; step {step} is saved and the run continues")


def _run_group(
    job: Job, session: Session, resources: dict[str, float], sizes: GroupSizes, supervision: Supervision
) -> tuple[Outcome, str | None]:
    """Runs one group of workers. Returns its outcome, and why it was asked to stop for a group of another size; None if
    it was not asked.

    Raises:
        RayActorError: Ray Train's controller, or the channel to the workers, died.
        PlacementLost: another command took the resources before the group had started.
        WorkersLost: the group has lost a worker.
        StorageFailed: the run's folder cannot be written to.
    """
    from ray.exceptions import RayActorError

    # Ray Train's controller makes this folder, too, but does not try again, and an error of its start arrives as text.
    scratch = job.run / SCRATCH
    try:
        scratch.make_folder()
    except OSError as error:
        raise StorageFailed(f"{scratch} cannot be made: {error}") from error
    channel = Channel.open()
    # The job is bound to the function. As a configuration, Ray Train's controller would unpickle it and import raypp.
    worker = functools.partial(train_worker, job, channel, supervision.may_be_stopped)
    trainer = _trainer(job, session, sizes.size, resources, worker)
    fitted = in_background(trainer.fit, "fit")  # in the main thread, Ray Train would install its handler of Ctrl-C
    asked, resizes = False, None
    placed: set[str] = set()
    try:
        ended = False
        while not ended:
            ended = fitted.done()
            for event in channel.receive(0 if ended else POLL_SECONDS):
                match event:
                    case Reported():
                        supervision.on_report(event.metrics)
                    case WorkersPlaced():
                        placed.add(event.placement_group)
                        sizes.group_trains()
                        supervision.on_event(event)
                    case _:
                        supervision.on_event(event)
            if not asked:
                resizes = sizes.wants_another_size()
            if not asked and (resizes or supervision.is_interrupted()):
                channel.interrupt()
                asked = True
    except BaseException as error:
        # On a cluster that outlives this command, the workers would otherwise continue without it.
        with contextlib.suppress(RayActorError):  # the channel may be lost, which the workers notice
            channel.interrupt(stopped=isinstance(error, SystemExit))  # Tune raises it in a trial that is stopped
        if not isinstance(error, KeyboardInterrupt):
            wait([fitted], min(supervision.stop_seconds, FAILED_STOP_SECONDS))
            raise
        _wait_until_saved(fitted, job.phase, supervision)
        if fitted.done() and fitted.exception() is None:
            outcome = fitted.result().return_value
            if isinstance(outcome, InterruptedAt):
                raise _interrupted(outcome.step) from None
        raise
    finally:
        with contextlib.ExitStack() as ends:  # the last one runs first, and each runs even if another one fails
            ends.callback(_delete_scratch_of_group, job.run, fitted)
            for group in placed:
                ends.callback(free_group, group)
            ends.callback(channel.close)
            ends.callback(sizes.close)
            ends.callback(_end, fitted)
    if (failure := _failure(fitted)) is not None:
        raise failure
    return fitted.result().return_value, resizes


def _wait_until_saved(fitted: Future[Any], phase: str, supervision: Supervision) -> None:
    """Waits until the workers, which were asked to stop, have saved their step and Ray Train's `fit` has ended."""
    say(supervision.on_event, STOPPING)
    seconds = supervision.stop_seconds
    wait([fitted], min(seconds, PATIENCE_SECONDS))
    if seconds > PATIENCE_SECONDS and not fitted.done():
        say(supervision.on_event, STILL_WAITS.format(phase=phase, whom="its workers"))
        wait([fitted], None if math.isinf(seconds) else seconds - PATIENCE_SECONDS)


def _trainer(
    job: Job,
    session: Session,
    size: int,
    resources: dict[str, float],
    worker: Callable[[], Outcome],
) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raypp.cluster.process_group import ByNodeAddress

    settings, scratch = job.experiment.cluster, job.run / SCRATCH
    return TorchTrainer(
        worker,
        torch_config=ByNodeAddress(),
        scaling_config=ScalingConfig(
            num_workers=size,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=settings.placement.upper(),
        ),
        run_config=RunConfig(
            # A new name each time, because a run resumes from raypp's checkpoints and not from those of Ray Train.
            name=uuid.uuid4().hex,
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            # raypp starts the next group: it waits for resources as long as necessary and may have another size.
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            logging_config=None if session.verbose else LoggingConfig(log_level="ERROR"),
        ),
    )


def _end(fitted: Future[Any]) -> None:
    """Ends Ray Train's `fit` if it still runs, as after a second interrupt. If Ray was shut down while the thread of
    `fit` uses it, Ray would end this process."""
    if not fitted.done():
        kill_controllers()
        wait([fitted], FIT_SECONDS)


def _delete_scratch_of_group(run: Location, fitted: Future[Any]) -> None:
    # If the storage has failed, deleting would be tried for a minute before the user sees the error.
    if fitted.done() and not isinstance(_failure(fitted), StorageFailed):
        delete_scratch(run)


def _failure(fitted: Future[Any]) -> BaseException | None:
    """The error of Ray Train's `fit`, which has ended: explained, unless it is Ray's own of a lost controller."""
    from ray.exceptions import RayActorError

    error = fitted.exception()
    # A controller that fails while it starts has not died, and would fail again at once.
    if error is None or (isinstance(error, RayActorError) and not error.actor_init_failed):
        return error
    explained = _explained(error)
    explained.__cause__ = error
    return explained


def _explained(error: BaseException) -> Exception:
    """The original error inside Ray Train's wrapper, as an error of raypp."""
    from ray.train import PreemptionError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    raised = [getattr(each, "cause", None) or each for each in causes]
    for inner in raised:
        if isinstance(inner, ConfigError):
            return inner
    # The death of a worker explains more than the errors of workers that lost their connection to it.
    first = next((each for each in causes if hasattr(each, "health_check_failure")), causes[0])
    said = f"{type(first).__name__}: {str(first).strip()}"
    if isinstance(first, WorkerGroupStartupTimeoutError):
        return PlacementLost(said)
    # If a worker died with its node, a health check reports it and holds Ray's error.
    found = [getattr(each, "health_check_failure", each) for each in causes]
    if isinstance(error, PreemptionError) or any(getattr(each, "preempted", False) for each in found):
        return WorkersPreempted(said)
    for inner in raised:
        if isinstance(inner, StorageFailed | WorkersLost):
            return inner
    for inner in raised:
        # Errors of raypp's own files are handled above; this is one of Ray Train's. Network errors are OSErrors, too.
        if isinstance(inner, OSError) and not isinstance(inner, ConnectionError | TimeoutError | socket.gaierror):
            return StorageFailed(f"Ray Train cannot write to the run's folder, or read from it: {inner}")
    return WorkersLost(said)


def _last_line(error: BaseException) -> str:
    """The last line of the error, where Ray says what has happened; the lines before it say where."""
    return str(error).strip().rpartition("\n")[2].strip()[:REASON_LENGTH]
