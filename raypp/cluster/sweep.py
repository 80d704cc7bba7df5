"""`raypp sweep`: runs the trials of an experiment on Ray Tune, each as an ordinary run, and delivers their front.

The state of a sweep is in the folders of its runs. Features, teacher and teacher logits are built before the first
trial, and all trials read them. Finished trials are not run again, trials that were stopped early stay stopped,
unfinished trials resume from their checkpoints, and nothing is read from Tune's own files. In addition to the results,
a sweep's folder holds

    points/00012.json      a point that a search has drawn, by its number
    exhausted.json         how many points a search has found, if it finds no more although more are wanted
    stopped/<run>.json     why a trial was stopped early
    seconds.json           the seconds of all commands together, while one runs
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raypp.cluster.background import in_background
from raypp.cluster.channel import Channel
from raypp.cluster.deadlines import FAILED_STOP_SECONDS, FIT_SECONDS, INTERRUPTED_STOP_SECONDS, PATIENCE_SECONDS
from raypp.cluster.pipeline import preparer
from raypp.cluster.scratch import SCRATCH, delete_leftovers, delete_scratch
from raypp.cluster.session import Session
from raypp.cluster.sweep_inputs import BuildCounts, SharedInputs
from raypp.cluster.trial import TrialTask, run_trial
from raypp.cluster.worker_quotas import SweepQuotas
from raypp.config import ClusterSettings, Experiment, StoppingSettings
from raypp.defaults import with_absolute_paths
from raypp.errors import ConfigError, FailsAgain, Interrupted, RunFailed, StorageFailed
from raypp.evaluation.direction import lower_is_better
from raypp.evaluation.evaluate import headline_key
from raypp.events import EventHandler, Message, PhaseAdvanced, PhaseFinished, PhaseStarted, ignore, say
from raypp.identity import versions
from raypp.interrupts import STILL_WAITS, STOPPING
from raypp.locks import delete_lock_of, locked
from raypp.plan_checks import check_device
from raypp.runs import clear_run, write_experiment
from raypp.storage import Location, tidying
from raypp.store import Artifact
from raypp.sweeps.plan import PlannedTrial, SweepPlan, plan_sweep
from raypp.sweeps.record import (
    SweepClock,
    evaluations_of,
    judged_evaluations_of,
    read_results,
    read_stopped,
    record_stopped,
)
from raypp.sweeps.result import deliver_sweep, read_delivered
from raypp.sweeps.stopping import Halving, Judgement
from raypp.sweeps.tracking import tracking_group
from raypp.sweeps.trial_outcome import Failure, outcome_of
from raypp.training.checkpoint import Checkpoints
from raypp.writable import check_storage_writable

# Ray Tune is imported where it is used, after the session has set the environment that it reads.
if TYPE_CHECKING:
    from raypp.cluster.searcher import TrialSearcher
    from raypp.cluster.trial_monitor import TrialMonitor

logger = logging.getLogger("raypp")

NO_REASON = "nothing; their folders hold no result, as if the nodes did not share cluster.storage"
POLL_SECONDS = 1.0
CLEARING_THREADS = 16  # in a bucket, locking a run takes a second
TIDY_SECONDS = 10.0  # to wait for the process of a trial that was stopped
PHASE = "trials"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C interrupts the command; Tune's handler would wait for its trials
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics.jsonl has all metrics
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read
}


def sweep(
    experiment: Experiment, *, fresh: bool = False, on_event: EventHandler = ignore, verbose: bool = False
) -> dict[str, Any]:
    """Runs the unfinished trials of a sweep and returns its result (as in its result.json).

    Args:
        fresh: delete the files of earlier trials first.
        on_event: takes the events of the progress, such as a display's `handle`.
        verbose: show Ray's log, too.

    Raises:
        ConfigError: a trial's settings, the input or the cluster do not fit; nothing was started.
        FailsAgain: no trial could be finished, and another call could finish none, either.
        RunFailed: no trial could be finished.
    """
    began = time.monotonic()
    check_device(experiment)
    build_counts = BuildCounts(on_event)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(trial_cluster(experiment), verbose))
        plan = plan_sweep(experiment, preparer(session, build_counts, trains=True))
        if not fresh and (delivered := _delivered(plan)) is not None:  # without a lock and without the right to write
            for folder in (plan.folder, *(each.plan.run for each in plan.trials)):
                delete_leftovers(folder)
            on_event(PhaseFinished(PHASE, note="finished before"))
            return delivered
        check_storage_writable(experiment)
        stack.enter_context(locked(plan.folder))
        if fresh:
            with ThreadPoolExecutor(CLEARING_THREADS) as pool:
                list(pool.map(_clear, [each.plan.run for each in plan.trials]))
            clear_run(plan.folder)
        # The points of an earlier search are deleted now, or the command that held the folder before has drawn more.
        if not plan.is_current:
            plan = plan_sweep(experiment, preparer(session, build_counts, trains=True))
        for number in range(len(plan.points)):
            plan.record_point(number)
        shared = SharedInputs(session, build_counts, tracking_group(plan.folder))
        ended = _ended(plan)
        left = [each for each in plan.trials if each.name not in ended]
        # An earlier command may have been killed, and its trials that have ended are not run again.
        delete_scratch(plan.folder)
        for each in plan.trials:
            if each.name in ended:
                delete_leftovers(each.plan.run)
        if (delivered := _delivered(plan)) is not None:  # by a command that has just unlocked the folder
            on_event(PhaseFinished(PHASE, note="finished before"))
            return delivered
        facts: dict[str, Any] = {"overhead_seconds_per_trial": None}
        failures: dict[str, Failure] = {}
        written = with_absolute_paths(experiment)
        write_experiment(plan.folder.make_folder(), written, plan.folder.name, versions())
        with SweepClock(plan.folder, began) as spent:
            if left or not plan.is_complete:
                session.start()
                session.check_resources()
                monitor = _run(plan, left, ended, experiment, shared)
                failures = {
                    row.name: Failure(row.reason, row.fails_again)
                    for row in monitor.rows.values()
                    if row.reason is not None
                }
                facts["overhead_seconds_per_trial"] = _overhead(monitor)
            results, stopped = read_results(plan.trials), read_stopped(plan.folder)
            if not results:
                first = next(iter(failures.values()), Failure(NO_REASON))
                hopeless = len(failures) == len(plan.trials) and all(each.fails_again for each in failures.values())
                error = FailsAgain if hopeless else RunFailed
                raise error(f"no trial could be finished; the first one said: {first.reason}")
            outcomes = [
                outcome_of(each, results.get(each.name), stopped.get(each.name), failures.get(each.name))
                for each in plan.trials
            ]
            facts |= {"seconds": spent.seconds, **shared.counts()}
            return deliver_sweep(plan.folder, experiment, outcomes, results, facts, on_event)


def _clear(run: Location) -> None:
    with locked(run):
        clear_run(run)


def prepare_sweep(experiment: Experiment, *, on_event: EventHandler = ignore, verbose: bool = False) -> list[Artifact]:
    """Fills the store for every trial that is known before the sweep runs. Returns the artifacts that they would read.

    Raises:
        ConfigError: a trial's settings, the input or the cluster do not fit.
    """
    check_device(experiment)
    with Session(trial_cluster(experiment), verbose) as session:
        plan = plan_sweep(experiment, preparer(session, on_event))
        shared = SharedInputs(session, BuildCounts(on_event), tracking_group(plan.folder))
        artifacts = [artifact for each in plan.trials for artifact in shared.inputs_of(each.plan).artifacts]
    return list({str(artifact.location): artifact for artifact in artifacts}.values())


def trial_cluster(experiment: Experiment) -> ClusterSettings:
    """The workers of one trial; `cpus_per_worker: auto` means one CPU here. Tune retries a trial whose workers fail,
    but a trial with elastic workers replaces them itself."""
    settings = experiment.cluster
    cpus = 1.0 if settings.cpus_per_worker == "auto" else settings.cpus_per_worker
    if settings.is_elastic:
        return settings.model_copy(update={"cpus_per_worker": cpus})
    workers = max(1, settings.max_workers)
    return settings.model_copy(update={"workers": workers, "cpus_per_worker": cpus, "max_failures": 0})


def plan_resources(experiment: Experiment) -> str:
    """The resources of each trial, and how many run at a time, in words. Starts Ray to find out what the cluster has.

    Raises:
        ConfigError: the cluster lacks the resources for one trial.
    """
    with Session(trial_cluster(experiment)) as session:
        session.start()
        session.check_resources()
        cluster, at_once = session.settings, trials_at_once(experiment, session)
    workers = f"{cluster.min_workers} to " * cluster.is_elastic + str(cluster.max_workers)
    return (
        f"each trial: {workers} worker{'s' * (cluster.max_workers != 1)} with {cluster.cpus_per_worker:g} CPU and "
        f"{cluster.gpus_per_worker:g} GPU; {at_once} trial{'s' * (at_once != 1)} at a time"
    )


def trials_at_once(experiment: Experiment, session: Session) -> int:
    """How many trials run at a time: as many as the cluster has resources for, with the fewest workers each, and at
    most as many as the sweep allows. An autoscaling cluster has resources for all of these."""
    limit = experiment.sweep.concurrent if experiment.sweep else None
    if session.settings.autoscaling:
        assert limit is not None, "a sweep on an autoscaling cluster is planned with a number"
        return limit
    capacity = max(1, session.groups(session.settings.min_workers))
    return capacity if limit is None else min(capacity, limit)


def _run(
    plan: SweepPlan,
    left: list[PlannedTrial],
    ended: dict[str, tuple[float, float] | None],
    experiment: Experiment,
    shared: SharedInputs,
) -> TrialMonitor:
    """Runs the trials of a sweep that have not ended on Ray Tune. Returns what is known of all trials."""
    os.environ.update(TUNE_ENVIRONMENT)
    from raypp.cluster.searcher import TrialSearcher
    from raypp.cluster.trial_monitor import TrialMonitor

    on_event, session = shared.build_counts.on_event, shared.session
    for each in left:
        shared.inputs_of(each.plan)
    channel_name = f"channel of {plan.folder} {uuid.uuid4().hex}"
    channel = Channel.open(channel_name)
    at_once = trials_at_once(experiment, session)
    has_workers = session.settings.max_workers > 1  # a trial of one worker is that worker, and Tune waits for its CPUs
    quotas = SweepQuotas.open(f"quotas of {channel_name}", session.settings) if has_workers else None
    monitor = TrialMonitor(headline_key(plan.trials[0].plan.task), on_event, quotas)
    monitor.add((each.name, each.stratum) for each in left)
    for each in plan.trials:
        if each.name in ended:
            monitor.add_ended(each.name, each.stratum, ended[each.name])
    may_be_stopped = plan.space.settings.stopping is not None
    searcher = TrialSearcher(
        plan,
        left,
        ended,
        task_of=lambda planned: _task(planned, plan.folder, shared, channel_name, quotas, may_be_stopped),
        on_draw=lambda new: monitor.add((each.name, each.stratum) for each in new),
        on_exhausted=lambda: on_event(
            Message(
                f"trials: no more than {len(plan.points)} of the {plan.wanted} points are found that differ and fit"
            )
        ),
    )
    tuner = _build_tuner(plan, ended, experiment, session.settings, searcher, monitor, at_once)

    def advance() -> None:
        waiting = sum(row.state in ("waiting", "running", "retrying") for row in list(monitor.rows.values()))
        on_event(PhaseAdvanced(PHASE, len(plan.trials) - waiting, len(plan.trials)))
        if quotas is not None:
            capacity = None if session.settings.autoscaling else session.capacity()
            quotas.update(capacity, min(at_once, waiting) if plan.is_complete else at_once)

    advance()
    on_event(PhaseStarted(PHASE, len(plan.trials)))
    fitted = in_background(tuner.fit, "fit")
    _supervise(fitted, advance, channel, monitor)
    delete_scratch(plan.folder)
    if (failure := fitted.exception()) is not None:
        raise RunFailed(f"Ray Tune: {failure}") from failure
    monitor.free_stopped()
    # Also those that an earlier command had stopped, which may have been killed before it tidied up.
    stopped = [each for each in plan.trials if monitor.rows[each.name].state == "stopped"]
    tidy = functools.partial(_tidy_stopped, keep=experiment.cluster.keep_checkpoints, channel_name=channel_name)
    with ThreadPoolExecutor(max_workers=CLEARING_THREADS) as threads:
        list(threads.map(tidy, (each.plan.run for each in stopped)))
    advance()
    on_event(PhaseFinished(PHASE))
    return monitor


def _tidy_stopped(run: Location, keep: int, channel_name: str) -> None:
    """Removes what the process of a trial that was stopped early has left behind, because Tune did not wait until it
    had tidied up. Does nothing if another command works on the run by now."""
    deadline = time.monotonic() + TIDY_SECONDS
    with tidying(run), contextlib.suppress(ConfigError, StorageFailed, Interrupted):
        delete_lock_of(channel_name, run)
        # Its process may be about to end.
        with locked(run, wait=True, is_interrupted=lambda: time.monotonic() > deadline):
            delete_scratch(run)
            Checkpoints(run / "checkpoints", keep).delete_incomplete()


def _build_tuner(
    plan: SweepPlan,
    ended: Container[str],
    experiment: Experiment,
    settings: ClusterSettings,
    searcher: TrialSearcher,
    monitor: TrialMonitor,
    at_once: int,
) -> Any:
    """Ray Tune, set up to run the trials that the searcher suggests.

    Args:
        ended: names of the trials that have ended.
        settings: the workers of one trial.
        at_once: how many trials may run at the same time.
    """
    from ray import tune

    from raypp.cluster.scheduler import StratifiedHalvingScheduler

    def stop(judgement: Judgement) -> None:
        record_stopped(plan.folder, judgement)
        monitor.stop(judgement)

    stopping, scratch = plan.space.settings.stopping, plan.folder / SCRATCH
    return tune.Tuner(
        tune.with_resources(run_trial, _resources(settings)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=stopping and StratifiedHalvingScheduler(_halving(plan, stopping, ended), stop),
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=hashlib.sha256(os.urandom(16)).hexdigest()[:16],  # a new name: nothing of Tune's is resumed
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            failure_config=tune.FailureConfig(
                # Trials of elastic workers count the failures of their workers themselves.
                max_failures=1 if settings.is_elastic else experiment.cluster.max_failures
            ),
            callbacks=[monitor],
            verbose=0,
        ),
    )


def _supervise(fitted: Future[Any], advance: Callable[[], None], channel: Channel, monitor: TrialMonitor) -> None:
    """Waits until Ray Tune's `fit` has ended. If an error or an interrupt comes first, the trials save their current
    steps, and `fit` ends before the error is raised: if Ray was shut down while its thread uses it, Ray would end this
    process."""
    try:
        while not fitted.done():
            advance()
            wait([fitted], POLL_SECONDS)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        deadline = time.monotonic() + (INTERRUPTED_STOP_SECONDS if interrupted else FAILED_STOP_SECONDS)
        try:
            _interrupt_trials(fitted, channel, monitor, deadline, monitor.on_event if interrupted else ignore)
        except Exception as trouble:  # a warning only, because the first error is the one to raise
            logger.warning("the trials that run cannot be asked to save their steps: %s", trouble)
        finally:  # after a second interrupt, too
            monitor.halted.set()
            wait([fitted], FIT_SECONDS)
        wait([fitted], min(max(0.0, deadline - time.monotonic()), FAILED_STOP_SECONDS))
        raise


def _interrupt_trials(
    fitted: Future[Any], channel: Channel, monitor: TrialMonitor, deadline: float, on_event: EventHandler
) -> None:
    """Asks all trials that run to save their current step, tells the user, and waits until they have saved it.

    Args:
        fitted: Ray Tune's `fit`. Once it has ended, nobody notices a trial that is lost.
        deadline: when to stop waiting, on the monotonic clock.
    """
    from ray.exceptions import RayActorError

    left = set[str]()
    patient_until = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(RayActorError):  # the channel was lost, and then trials stop by themselves
        channel.interrupt()
    say(on_event, STOPPING)
    with contextlib.suppress(RayActorError):
        while time.monotonic() < deadline and not fitted.done():
            running = {row.name for row in list(monitor.rows.values()) if row.state == "running"}
            saving = sorted(running - left)
            if not saving:
                return
            if time.monotonic() > patient_until:
                say(on_event, STILL_WAITS.format(phase=PHASE, whom=", ".join(saving)))
                patient_until = math.inf  # once is enough
            left.update(channel.receive(POLL_SECONDS))


def _resources(settings: ClusterSettings) -> Any:
    """The resources that Tune reserves for a trial. A trial of one worker is that worker. A trial with workers of its
    own gets next to nothing, because its workers reserve their own resources and need all CPUs."""
    from ray import tune

    if settings.max_workers == 1:
        return {"cpu": settings.cpus_per_worker, "gpu": settings.gpus_per_worker}
    return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])


def _task(
    planned: PlannedTrial,
    sweep: Location,
    shared: SharedInputs,
    channel: str,
    quotas: SweepQuotas | None,
    may_be_stopped: bool,
) -> TrialTask:
    """The input of a trial's actor. A single worker is the actor itself."""
    plan, cluster = planned.plan, shared.session.settings
    if cluster.max_workers == 1:
        cluster = cluster.model_copy(update={"workers": 0})
    # The paths in the plan's settings are absolute. Ray runs already, with the sweep's dashboard or without one.
    cluster = cluster.model_copy(
        update={
            "storage": plan.experiment.cluster.storage,
            "store": plan.experiment.cluster.store,
            "dashboard": False,
        }
    )
    tracking = plan.experiment.tracking
    if tracking.figures == "auto":
        tracking = tracking.model_copy(update={"figures": "main"})
    plan = replace(plan, experiment=plan.experiment.model_copy(update={"cluster": cluster, "tracking": tracking}))
    return TrialTask(
        job=shared.job_of(plan),
        stratum=planned.stratum,
        digest=plan.digest,
        sweep=sweep.name,
        total_steps=plan.steps.total,
        may_be_stopped=may_be_stopped,
        threads=max(1, int(float(cluster.cpus_per_worker))),
        channel=channel,
        quotas=None if quotas is None else quotas.name,
    )


def _halving(plan: SweepPlan, stopping: StoppingSettings, ended: Container[str]) -> Halving:
    """The rungs as an earlier command left them: a trial that resumes is not judged again at rungs it has passed."""
    halving = Halving(stopping, lower_is_better(headline_key(plan.trials[0].plan.task)))
    for each in plan.trials:
        evaluations = evaluations_of(each) if each.name in ended else judged_evaluations_of(each)
        halving.note(each.name, each.stratum, [(part, metric) for part, metric, _ in evaluations])
    return halving


def _ended(plan: SweepPlan) -> dict[str, tuple[float, float] | None]:
    """Metric and achieved density of each trial that has ended; None for a trial that was stopped early."""
    finished = {
        name: (result["metrics"][result["headline"]], result["density"]["linear"])
        for name, result in read_results(plan.trials).items()
    }
    return dict.fromkeys(read_stopped(plan.folder)) | finished


def _delivered(plan: SweepPlan) -> dict[str, Any] | None:
    """The result of a sweep whose trials have all ended; None if some have not."""
    # The sweep's own file is read first: without one, the results of the trials need not be read.
    if not plan.is_complete or (delivered := read_delivered(plan)) is None:
        return None
    ended = _ended(plan)
    return delivered if all(each.name in ended for each in plan.trials) else None


def _overhead(monitor: TrialMonitor) -> float | None:
    """Mean of the seconds that a trial took in addition to training and the final evaluation; None if none finished."""
    known = [row.overhead_seconds for row in monitor.rows.values() if row.overhead_seconds is not None]
    return sum(known) / len(known) if known else None
