"""One trial as Ray Tune runs it: in its own actor, which runs the training loop itself or starts workers for it."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from raypp.cluster.channel import Channel, InterruptNotice, forward_warnings
from raypp.cluster.deadlines import TRIAL_STOP_SECONDS, TUNE_STOP_SECONDS
from raypp.cluster.session import Session
from raypp.cluster.shared_folders import check_seen
from raypp.cluster.trainer import Supervision, run_job
from raypp.cluster.trial_report import TrialReport
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.errors import ConfigError, FailsAgain, Interrupted, RunFailed, StorageFailed, WorkersLost
from raypp.evaluation.evaluate import headline_key
from raypp.events import Message, PhaseAdvanced, WorkersPlaced
from raypp.identity import versions
from raypp.locks import locked
from raypp.runs import finished_result, start_run
from raypp.training.job import Job
from raypp.training.metrics_file import whole_records

# A report waits for the driver's acknowledgement; a training step should not wait often.
REPORT_SECONDS = 2.0


@dataclass(frozen=True, repr=False)
class TrialTask:
    """The input of a trial's actor."""

    job: Job
    stratum: str
    digest: str
    """Identity hash of the run."""
    sweep: str
    """Name of the sweep's folder, which is next to the run's."""
    total_steps: int
    may_be_stopped: bool
    """Whether the sweep stops trials early."""
    threads: int
    """Threads of torch, if the actor runs the loop itself."""
    channel: str
    """Name of the channel to the command."""
    quotas: str | None
    """Name of the sweep's quotas; None if the trial has no workers of its own."""

    def __repr__(self) -> str:  # Tune uses it in names and files
        return self.job.run.name


def run_trial(config: dict[str, Any]) -> None:
    """Runs a trial, or resumes it. Everything that it reads is in the store."""
    import ray
    import torch
    from ray.exceptions import RayActorError

    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(TUNE_STOP_SECONDS)
    task: TrialTask = config["task"]
    _release_memory()
    torch.set_num_threads(task.threads)
    reporter = _Reporter(task)
    run = task.job.run
    channel = Channel.named(task.channel)
    quota = None if task.quotas is None else WorkerQuota.of(task.quotas, run.name)
    notice = InterruptNotice(channel)
    try:
        # Processes of a killed command may hold the lock for some seconds more.
        with (
            forward_warnings(reporter.warn),
            Session(task.job.experiment.cluster) as session,
            locked(run, wait=True, command=task.channel, is_interrupted=notice),
        ):
            check_seen(run.parent / task.sweep)
            result = finished_result(run, task.digest)
            was_finished = result is not None
            if result is None:
                start_run(run.make_folder(), task.job.experiment, task.digest, versions())
                reporter.repeat_evaluations()
                session.start()  # Ray runs already; this lets the session know
                supervision = Supervision(
                    reporter.on_event, reporter.on_evaluation, task.may_be_stopped, notice, TRIAL_STOP_SECONDS
                )
                result = run_job(task.job, session, supervision, quota)
    except (StorageFailed, WorkersLost):
        raise
    except Interrupted as interrupt:
        if notice.drained:
            # After this error Tune always retries the trial elsewhere: it does not count a preempted node as a failure.
            raise RayActorError(
                error_msg=f"its node is preempted; step {interrupt.step} is saved", preempted=True
            ) from None
        ray.get(channel.send(run.name))  # fails if the channel was lost and the command was not
        while True:  # the command is about to end this process; until then Tune must not start anything else in it
            time.sleep(TUNE_STOP_SECONDS)
    except (RunFailed, ConfigError) as failure:
        # Not raised: Tune would try again, and it would fail again.
        reporter.report(failed=str(failure), fails_again=isinstance(failure, FailsAgain))
        return
    finally:
        notice.close()
    reporter.finish(result, was_finished)


def _release_memory() -> None:
    """Returns the memory that the previous trial in this process has freed to the system.

    glibc keeps it, in pieces too small for the next trial's batches: each trial of MiniLM would add a gigabyte. torch
    keeps a GPU's memory for this process.
    """
    import torch

    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass
class _Reporter:
    """Reports the progress of a trial to the driver."""

    task: TrialTask
    fraction: float = 0.0
    density: float | None = None
    messages: list[str] = field(default_factory=list)
    placement_group: str | None = None
    reported: float = -REPORT_SECONDS

    def warn(self, text: str) -> None:
        """Adds a line to the next report. Unlike `report`, any thread may call this."""
        self.messages.append(text)

    def on_event(self, event: Any) -> None:
        match event:
            case Message():
                self.warn(event.text)
                if self.task.quotas is not None:
                    self.report()  # at once, because the trial may have to wait for workers now
            case WorkersPlaced():
                self.placement_group = event.placement_group
                self.report()  # at once, so that the command can remove the group if this process is lost
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
        """Reports the evaluations of earlier sessions again: the driver may be new, or may have missed the last one."""
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
        fails_again: bool = False,
    ) -> None:
        from ray import tune

        messages, self.messages = self.messages, []
        report = TrialReport(
            trial=self.task.job.run.name,
            stratum=self.task.stratum,
            fraction=self.fraction,
            density=self.density,
            metric=metric,
            repeated=repeated,
            messages=tuple(messages),
            placement_group=self.placement_group,
            work_seconds=work_seconds,
            finished=finished,
            failed=failed,
            fails_again=fails_again,
        )
        tune.report(asdict(report))
        self.reported = time.monotonic()
