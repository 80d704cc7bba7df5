"""Runs a job: in this process, or on the workers of a Ray TorchTrainer, from the command's side."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import torch

from raypp.checkpoint import Checkpoints
from raypp.cluster.background import in_background
from raypp.cluster.channel import Channel
from raypp.cluster.elastic import Elastic
from raypp.cluster.places import free_group, places_name
from raypp.cluster.session import Session
from raypp.cluster.train_worker import train_worker
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.errors import ConfigError, Interrupted, RunFailed, WorkersLost, WorkersTaken
from raypp.events import Message, Reported, WorkersPlaced
from raypp.interrupts import STOPPING, deferred_interrupts
from raypp.job import Job
from raypp.loop import fit
from raypp.storage import Location, tidying
from raypp.worker import Worker, ignore, never

EventHandler = Callable[[Any], None]
CONTROLLER_FAILURES = 2  # how often Ray Train's controller may fail, and how often its process may be lost
# For workers to save the step they are at, when they are asked to leave. `ray job stop` kills when its own time is
# over, and the command takes some of that to end.
STOP_SECONDS = max(30.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 0)) - 10)
TRIAL_STOP_SECONDS = 30.0  # … in a sweep's trial, of the minute that Tune gives it
POLL_SECONDS = 0.5


def run_job(
    job: Job,
    session: Session,
    on_event: EventHandler,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    *,
    may_be_stopped: bool = False,
    is_interrupted: Callable[[], bool] | None = None,
    quota: WorkerQuota | None = None,
) -> dict[str, Any]:
    """Trains a job to its end and returns its result.

    Args:
        session: started, and found to have the resources, unless `workers: 0`.
        on_report: called with the metrics of every evaluation; what it raises ends the job.
        may_be_stopped: whether it may: then the evaluation's checkpoint is written before.
        is_interrupted: whether this process is to leave; None: it is when it is interrupted.
        quota: what workers that come and go may have of the cluster; None: all there is room for.

    Raises:
        KeyboardInterrupt: it was interrupted; the step it was at is saved, if there was time for it.
        Interrupted: `is_interrupted` has said so; the step it was at is saved.
        RunFailed: training failed for good; the same command resumes it.
    """
    on_report = on_report or ignore
    if job.experiment.cluster.max_workers:
        return _run_on_workers(job, session, on_event, on_report, may_be_stopped, is_interrupted or never, quota)
    device = torch.device("cuda" if job.experiment.cluster.gpus_per_worker else "cpu")
    worker = Worker(device=device, on_event=on_event, on_report=on_report, may_be_stopped=may_be_stopped)
    if is_interrupted is not None:
        return fit(job, replace(worker, is_interrupted=is_interrupted))
    with deferred_interrupts(lambda text: on_event(Message(text))) as interrupted:
        try:
            result = fit(job, replace(worker, is_interrupted=interrupted))
        except Interrupted as left:
            raise _interrupted(left.step) from None
        if interrupted():  # too late to stop this run, but not what may follow it
            raise KeyboardInterrupt
        return result


def _interrupted(step: int) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"after step {step}, which is saved")


def _run_on_workers(
    job: Job,
    session: Session,
    on_event: EventHandler,
    on_report: Callable[[dict[str, Any]], None],
    may_be_stopped: bool,
    is_interrupted: Callable[[], bool],
    quota: WorkerQuota | None,
) -> dict[str, Any]:
    """Runs groups of workers, one after the other, until one has done the job. A group of a fixed size that loses a
    worker is Ray Train's to restart. One that may be smaller or larger is over then, as any group is when its node is
    taken away or Ray Train's controller dies; the next has the size for which there is room."""
    from ray.exceptions import RayActorError

    settings = job.experiment.cluster
    resources = session.worker_resources()  # once: an even part of the cluster is another when a node has gone
    elastic = None
    if settings.is_elastic:
        quota = quota or WorkerQuota.alone(settings.min_workers, settings.max_workers)
        elastic = Elastic(settings, resources, quota, places_name(job.run))
    lost = failures = 0
    news: list[str] = []
    while True:
        size = settings.max_workers
        if elastic is not None:
            size = elastic.next_size(is_interrupted, lambda text: on_event(Message(f"{job.phase}: {text}")))
            if not size:
                saved = Checkpoints(job.run / "checkpoints", settings.keep_checkpoints).steps()
                raise Interrupted(max(saved, default=0))
            if news or size < settings.max_workers:
                news.append(f"{size} of {settings.max_workers} workers train")
        if news:
            on_event(Message(f"{job.phase}: {'; '.join(news)}"))
        try:
            returned = _run_group(
                job, session, size, resources, elastic, on_event, on_report, may_be_stopped, is_interrupted
            )
        except RayActorError as error:
            lost += 1
            if lost > CONTROLLER_FAILURES:
                raise RunFailed(f"Ray Train's controller was lost {lost} times: {str(error).strip()}") from error
            news = ["Ray Train's controller was lost; the run starts again where it was saved"]
            continue
        except WorkersLost as error:
            failures += not isinstance(error, WorkersTaken)
            if not settings.is_elastic or failures > settings.max_failures:
                raise
            news = ["a worker was lost; the run goes on where it was saved"]
            continue
        if "failed" in returned:
            raise RunFailed(returned["failed"])
        if "left" not in returned:
            return dict(returned["result"])
        if is_interrupted():
            raise Interrupted(returned["left"])
        if returned["resizes"]:
            news = [f"{returned['resizes']}; step {returned['left']} is saved"]
        else:
            news = [f"a node is taken away; step {returned['left']} is saved and goes on elsewhere"]


def _run_group(
    job: Job,
    session: Session,
    size: int,
    resources: dict[str, float],
    elastic: Elastic | None,
    on_event: EventHandler,
    on_report: Callable[[dict[str, Any]], None],
    may_be_stopped: bool,
    is_interrupted: Callable[[], bool],
) -> dict[str, Any]:
    """Runs one group of so many workers and returns what `train_worker` did on its first one, and why it was asked to
    leave for one of another size, if it was (`resizes`).

    Raises:
        RayActorError: Ray Train's controller, or the channel to the workers, died.
        WorkersLost: a worker was lost, and Ray Train is not to try again.
    """
    from ray.exceptions import RayActorError

    channel = Channel.open()
    scratch = job.run / "ray"
    # Not as its configuration, which Ray Train's controller opens, too: it would import all of raypp first.
    worker = functools.partial(train_worker, job, channel, may_be_stopped)
    trainer = _trainer(job, session, size, resources, scratch, worker)
    fitted = in_background(trainer.fit, "fit")  # in the main thread it would take over Ctrl-C
    asked, resizes = False, None
    placed: set[str] = set()
    try:
        ended = False
        while not ended:
            ended = fitted.done()
            for event in channel.take(0 if ended else POLL_SECONDS):
                if isinstance(event, Reported):
                    on_report(event.metrics)
                else:
                    on_event(event)
                if isinstance(event, WorkersPlaced):
                    placed.add(event.placement_group)
                    if elastic is not None:
                        elastic.group_trains()
            if not asked and elastic is not None:
                resizes = elastic.wants_another_size()
            if not asked and (resizes or is_interrupted()):
                channel.interrupt()
                asked = True
    except BaseException as error:
        # Else the workers would train on, on a cluster of others, with a run that is nobody's; and Ray of our own must
        # not be shut down under the trainer's feet.
        if isinstance(error, KeyboardInterrupt):
            on_event(Message(STOPPING))
        with contextlib.suppress(RayActorError):  # the channel itself may be what was lost: then they know
            channel.interrupt(stopped=isinstance(error, SystemExit))  # by which Tune ends a trial
        wait([fitted], STOP_SECONDS if is_interrupted is never else TRIAL_STOP_SECONDS)
        if isinstance(error, KeyboardInterrupt) and fitted.done() and fitted.exception() is None:
            returned = fitted.result().return_value
            if "left" in returned:
                raise _interrupted(returned["left"]) from None
        raise
    finally:
        if elastic is not None:
            elastic.close()
        channel.close()
        for group in placed:
            free_group(group)
    with tidying(scratch):
        scratch.delete()
    failure = fitted.exception()
    if isinstance(failure, RayActorError):
        raise failure
    if failure is not None:
        raise _explained(failure) from failure
    return {**fitted.result().return_value, "resizes": resizes}


def _trainer(
    job: Job,
    session: Session,
    size: int,
    resources: dict[str, float],
    scratch: Location,
    worker: Callable[[], dict[str, Any]],
) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raypp.cluster.process_group import ByNodeAddress

    settings = job.experiment.cluster
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
            # A name of its own every time: resuming is by the run's own checkpoints, the same for every kind of worker.
            name=uuid.uuid4().hex,
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            failure_config=FailureConfig(
                max_failures=0 if settings.is_elastic else settings.max_failures,
                max_preemption_failures=0 if settings.is_elastic else -1,  # the next group may be smaller
                controller_failure_limit=CONTROLLER_FAILURES,
            ),
            logging_config=None if session.verbose else LoggingConfig(log_level="ERROR"),
        ),
    )


def _explained(error: BaseException) -> Exception:
    """The user's or the run's own error, out of Ray Train's wrapping."""
    from ray.train import PreemptionError

    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for cause in causes:
        inner = getattr(cause, "cause", None) or cause
        if isinstance(inner, ConfigError):
            return inner
    cause = causes[0]
    # A worker that died with its node is found dead by a health check, which has Ray's own error inside.
    found = [getattr(each, "health_check_failure", each) for each in causes]
    taken = isinstance(error, PreemptionError) or any(getattr(each, "preempted", False) for each in found)
    return (WorkersTaken if taken else WorkersLost)(f"{type(cause).__name__}: {str(cause).strip()}")
