"""`raypp sweep`: the trials of an experiment on Ray Tune, each an ordinary run in a process of its own, and their
front.

A run's folder is the truth. Features, teacher and teacher logits are built before the first trial and read by all;
trials that are finished are taken as they are, unfinished ones go on from their checkpoints, and nothing depends on
what Tune remembers.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any

from raypp.cluster.pipeline import EventHandler, check_device, prepare_plan, run_plan
from raypp.cluster.session import Session
from raypp.cluster.trainer import start_fit
from raypp.config import Experiment
from raypp.errors import ConfigError, RunFailed
from raypp.figures import save_to
from raypp.front import Point, best_runs, front_csv, points_of
from raypp.front_figure import Front, front_figure
from raypp.plan import Plan, make_plan
from raypp.progress import Message, NullDisplay, PhaseAdvanced, PhaseFinished, PhaseStarted
from raypp.runs import clear_run, finished_result, locked
from raypp.space import Trial, trials_of
from raypp.storage import Location

RETRIES = 1
POLL_SECONDS = 1.0
PHASE = "trials"


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that was checked and has a folder."""

    trial: Trial
    plan: Plan


def plan_sweep(experiment: Experiment) -> list[PlannedTrial]:
    """Every trial, checked against its input as a single run would be. Two that come to the same run are one.

    Raises:
        ConfigError: with every problem of every trial.
    """
    if experiment.cluster.max_workers > 1:
        raise ConfigError(
            f"cluster.workers: {experiment.cluster.workers} workers a trial are not possible in a sweep; give 0 or 1"
        )
    problems: list[str] = []
    planned: dict[str, PlannedTrial] = {}
    for trial in trials_of(experiment):
        try:
            plan = make_plan(trial.experiment)
            planned.setdefault(plan.digest, PlannedTrial(trial, plan))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return list(planned.values())


def sweep(
    experiment: Experiment, *, fresh: bool = False, display: NullDisplay | None = None, verbose: bool = False
) -> dict[str, Any]:
    """Runs what is left of a sweep and returns its result (as in its result.json).

    Args:
        fresh: delete first what earlier trials left.
        display: shows the progress.
        verbose: show Ray's log, too.

    Raises:
        ConfigError: a trial's settings, the input or the cluster do not fit; nothing was started.
        RunFailed: no trial could be finished.
    """
    on_event = (display or NullDisplay()).handle
    began = time.monotonic()
    check_device(experiment)
    planned = plan_sweep(experiment)
    folder = _folder(planned)
    one_worker = experiment.cluster.model_copy(update={"workers": 1})
    with Session(one_worker, verbose) as session, locked(folder), session.owning(folder):
        if fresh:
            for each in planned:
                with locked(each.plan.run), session.owning(each.plan.run):
                    clear_run(each.plan.run)
        failures: dict[str, str] = {}
        unfinished = [each for each in planned if finished_result(each.plan.run, each.plan.digest) is None]
        if unfinished:
            session.start()
            session.check_resources()
            _prepare(unfinished, session, on_event)
            failures = _run(unfinished, len(planned), folder / "ray", experiment, on_event)
        else:
            on_event(PhaseFinished(PHASE, note="finished before"))
        results = []
        for each in planned:
            result = finished_result(each.plan.run, each.plan.digest)
            if result is not None:
                results.append((each.trial.point, each.trial.changes, result))
        if not results:
            raise RunFailed(f"no trial could be finished; the first one said: {next(iter(failures.values()))}")
        seconds = time.monotonic() - began
        return _deliver(folder, experiment, points_of(results), results, failures, seconds)


def _in_one_process(experiment: Experiment) -> Experiment:
    """A trial's actor runs the loop itself: no workers of its own."""
    cluster = experiment.cluster.model_copy(update={"workers": 0})
    return experiment.model_copy(update={"cluster": cluster})


def _folder(planned: list[PlannedTrial]) -> Location:
    digest = hashlib.sha256("".join(each.plan.digest for each in planned).encode()).hexdigest()
    return planned[0].plan.run.parent / f"sweep-{digest[:8]}"


def _prepare(planned: list[PlannedTrial], session: Session, on_event: EventHandler) -> None:
    """Fills the store, once for all trials that need the same."""
    done: set[Any] = set()
    for each in planned:
        plan = each.plan
        needs = (
            *(plan.features_key(split, plan.student.tokenizer) for split in plan.splits),
            plan.teacher.fingerprint if plan.teacher else plan.teacher_plan.digest if plan.teacher_plan else None,
        )
        if needs not in done:
            done.add(needs)
            prepare_plan(plan, session, on_event)


def _run(
    planned: list[PlannedTrial], total: int, scratch: Location, experiment: Experiment, on_event: EventHandler
) -> dict[str, str]:
    """Runs the trials on Tune; returns what the failed ones said, by run folder."""
    # Ctrl-C ends the command, as everywhere; Tune's own handler would wait for its trials.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    from ray import tune

    cpus = 1.0 if experiment.cluster.cpus_per_worker == "auto" else float(experiment.cluster.cpus_per_worker)
    resources = {"cpu": cpus, "gpu": experiment.cluster.gpus_per_worker}
    experiments = [_in_one_process(each.plan.experiment) for each in planned]
    threads = max(1, int(cpus))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_run_trial, experiments=experiments, threads=threads), resources),
        param_space={"number": tune.grid_search(list(range(len(planned))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=experiment.sweep.concurrent if experiment.sweep else None, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=hashlib.sha256(os.urandom(16)).hexdigest()[:16],  # nothing of Tune's is gone on with
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    thread, outcome = start_fit(tuner.fit)
    on_event(PhaseStarted(PHASE, total))
    while thread.is_alive():
        # Tune's callbacks are pickled, which a display cannot be; and the folders are the truth anyway.
        done = sum((each.plan.run / "result.json").is_file() for each in planned)
        on_event(PhaseAdvanced(PHASE, total - len(planned) + done, total))
        thread.join(POLL_SECONDS)
    scratch.delete()
    if "error" in outcome:
        raise RunFailed(f"Ray Tune: {outcome['error']}") from outcome["error"]
    failures = {}
    for each, found in zip(planned, outcome["result"], strict=True):  # Tune keeps the order of the grid
        for text in (found.metrics or {}).get("messages", []):
            on_event(Message(f"trial {each.plan.run.name}: {text}"))
        if found.error is not None:
            failures[str(each.plan.run)] = _last_line(found.error)
            on_event(Message(f"trial {each.plan.run.name} failed: {_last_line(found.error)}"))
    on_event(PhaseFinished(PHASE))
    return failures


def _run_trial(config: dict[str, Any], experiments: list[Experiment], threads: int) -> None:
    """One trial in its own actor; the store has everything, and the run's folder has what an earlier try left."""
    import torch
    from ray import tune

    torch.set_num_threads(threads)
    messages: list[str] = []

    def keep(event: Any) -> None:
        if isinstance(event, Message):
            messages.append(event.text)

    plan = make_plan(experiments[config["number"]])
    with Session(plan.experiment.cluster) as session:
        # What a command that was killed has left may hold the run for some seconds more.
        result = run_plan(plan, session, keep, phase="trial", wait=True)
    headline = result["headline"]
    tune.report({headline: result["metrics"][headline], "density": result["density"]["linear"], "messages": messages})


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no reason was given"


def _deliver(
    folder: Location,
    experiment: Experiment,
    points: list[Point],
    results: list[tuple[int, Any, Any]],
    failures: dict[str, str],
    seconds: float,
) -> dict[str, Any]:
    """Writes front.csv, front.png, best.json and, last, result.json."""
    folder.make_folder()
    headline = results[0][2]["headline"]
    teachers = {(result["teacher_metrics"] or {}).get(headline) for *_, result in results}
    teacher = teachers.pop() if len(teachers) == 1 else None  # trials of different teachers have no line in common
    (folder / "front.csv").write_text(front_csv(points, headline))
    save_to(front_figure([Front(experiment.name, points, teacher)], headline), folder / "front.png")
    best = best_runs(points)
    (folder / "best.json").write_json(best)
    result = {
        "name": experiment.name,
        "headline": headline,
        "teacher": teacher,
        "trials": len(results) + len(failures),
        "finished": len(results),
        "failures": failures,
        "seconds": seconds,
        "front": [
            {
                "density": p.density,
                "metric": p.metric,
                "spread": p.spread,
                "settings": dict(p.changes),
                "run": p.runs[0],
            }
            for p in points
            if p.on_front
        ],
        "paths": {name: str(folder / name) for name in ("front.csv", "front.png", "best.json")},
    }
    (folder / "result.json").write_json(result)
    return result
