"""One trial as Ray Tune runs it: in an actor of its own, which runs the loop itself or starts workers for it.

What a trial reports, always with the same fields:

    trial, stratum     name of its run; whom it competes with
    fraction           part of its steps that is done, 0 to 1
    density            of the linear weights, now; None while unknown
    metric             the headline metric; None in a report that is no evaluation
    repeated           whether an earlier session made this evaluation
    messages           lines for the user since the report before
    placement_group    of its own workers, hex; None without any
    work_seconds       what training and the final evaluation took in this session; None until the end, and where
                       the run was finished before
    finished           whether the run is
    failed             None, or what the run failed with, where trying again would not help
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass, field
from typing import Any

from raypp.cluster.channel import Channel, InterruptNotice, warnings_to
from raypp.cluster.deadlines import TRIAL_STOP_SECONDS, TUNE_STOP_SECONDS
from raypp.cluster.session import Session
from raypp.cluster.shared_folders import check_seen
from raypp.cluster.trainer import Supervision, run_job
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.errors import ConfigError, Interrupted, RunFailed, StorageFailed, WorkersLost
from raypp.evaluation.evaluate import headline_key
from raypp.events import Message, PhaseAdvanced, WorkersPlaced
from raypp.identity import versions
from raypp.runs import finished_result, locked, start_run
from raypp.training.job import Job
from raypp.training.metrics_file import whole_records

# A report waits for the driver's answer, which a training step should not do often.
REPORT_SECONDS = 2.0


@dataclass(frozen=True, repr=False)
class TrialTask:
    """What a trial's actor is given."""

    job: Job
    stratum: str
    digest: str
    """Identity of the run."""
    sweep: str
    """Name of the sweep's folder, beside the run's."""
    total_steps: int
    may_be_stopped: bool
    """Whether the sweep stops trials early."""
    threads: int
    """Of torch, where the actor runs the loop itself."""
    channel: str
    """Name of the channel to the command."""
    quotas: str | None
    """Name of the quotas of the cluster; None where the trial has no workers of its own."""

    def __repr__(self) -> str:  # Tune puts it into names and files
        return self.job.run.name


def run_trial(config: dict[str, Any]) -> None:
    """Runs a trial from whatever of it is done. The store has everything it reads."""
    import ray
    import torch
    from ray.exceptions import RayActorError

    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(TUNE_STOP_SECONDS)
    task: TrialTask = config["task"]
    _give_memory_back()
    torch.set_num_threads(task.threads)
    reporter = _Reporter(task)
    run = task.job.run
    channel = Channel.named(task.channel)
    quota = None if task.quotas is None else WorkerQuota.of(task.quotas, run.name)
    notice = InterruptNotice(channel)
    try:
        # What a command that was killed has left may hold the run for some seconds more.
        with (
            warnings_to(reporter.warn),
            Session(task.job.experiment.cluster) as session,
            locked(run, wait=True),
            session.owning(run, wait=True),
        ):
            check_seen(run.parent / task.sweep)
            result = finished_result(run, task.digest)
            was_finished = result is not None
            if result is None:
                start_run(run.make_folder(), task.job.experiment, task.digest, versions())
                reporter.repeat_evaluations()
                session.start()  # Ray is there already; but then the session knows
                supervision = Supervision(
                    reporter.on_event, reporter.on_evaluation, task.may_be_stopped, notice, TRIAL_STOP_SECONDS
                )
                result = run_job(task.job, session, supervision, quota)
    except (StorageFailed, WorkersLost):
        raise
    except Interrupted as left:
        if notice.drained:
            # By this error Tune tries the trial again elsewhere, as often as it comes: it counts no node that is taken
            # away among a trial's failures.
            raise RayActorError(
                error_msg=f"its node is taken away; step {left.step} is saved", preempted=True
            ) from None
        ray.get(channel.tell(run.name))  # an error where it is the channel that was lost, and not the command
        while True:  # the command is about to end, and with it this process; Tune is not to start anything else in it
            time.sleep(TUNE_STOP_SECONDS)
    except (RunFailed, ConfigError) as failure:
        reporter.report(failed=str(failure))  # it would fail alike: not raised, so that Tune does not try again
        return
    finally:
        notice.close()
    reporter.finish(result, was_finished)


def _give_memory_back() -> None:
    """What the trial before in this process has freed. glibc keeps it, in pieces that the next trial's batches do not
    fit into: with each trial of MiniLM's a process would hold a gigabyte more. torch keeps a GPU's for itself."""
    import torch

    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass
class _Reporter:
    """Tells the driver how a trial is getting on."""

    task: TrialTask
    fraction: float = 0.0
    density: float | None = None
    messages: list[str] = field(default_factory=list)
    placement_group: str | None = None
    reported: float = -REPORT_SECONDS

    def warn(self, text: str) -> None:
        """Says it with the next report. (From any thread: only the trial's own may report.)"""
        self.messages.append(text)

    def on_event(self, event: Any) -> None:
        match event:
            case Message():
                self.warn(event.text)
                if self.task.quotas is not None:
                    self.report()  # at once: it may be that it waits for workers
            case WorkersPlaced():
                self.placement_group = event.placement_group
                self.report()  # at once: should this process be lost, the command gives the group back
            case PhaseAdvanced():
                self.fraction = event.done / self.task.total_steps
                self.density = self.density if event.density is None else event.density
                if event.metric is None and time.monotonic() - self.reported >= REPORT_SECONDS:
                    self.report()

    def on_evaluation(self, metrics: dict[str, Any], repeated: bool = False) -> None:
        self.fraction = metrics["step"] / self.task.total_steps
        self.density = metrics["prune/density"]
        self.report(metric=metrics[headline_key(self.task.job.task)], repeated=repeated)

    def repeat_evaluations(self) -> None:
        """Tells what an earlier try had evaluated: the driver may be a new one, and may not have heard the last."""
        for record in whole_records(self.task.job.run / "metrics.jsonl"):
            if headline_key(self.task.job.task) in record:
                self.on_evaluation(record, repeated=True)

    def finish(self, result: dict[str, Any], was_finished: bool) -> None:
        self.fraction, self.density = 1.0, result["density"]["linear"]
        perf = result["perf"]
        work_seconds = None if was_finished else perf["perf/loop_seconds"] + perf["perf/final_evaluation_seconds"]
        self.report(metric=result["metrics"][result["headline"]], work_seconds=work_seconds, finished=True)

    def report(
        self,
        metric: float | None = None,
        repeated: bool = False,
        work_seconds: float | None = None,
        finished: bool = False,
        failed: str | None = None,
    ) -> None:
        from ray import tune

        messages, self.messages = self.messages, []
        tune.report(
            {
                "trial": self.task.job.run.name,
                "stratum": self.task.stratum,
                "fraction": self.fraction,
                "density": self.density,
                "metric": metric,
                "repeated": repeated,
                "messages": messages,
                "placement_group": self.placement_group,
                "work_seconds": work_seconds,
                "finished": finished,
                "failed": failed,
            }
        )
        self.reported = time.monotonic()
