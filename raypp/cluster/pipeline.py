"""One experiment from its plan to its result: features, teacher, teacher logits, the run itself.

Each stage first looks for its result, in the store or in the run's folder. So the same command resumes an unfinished
run and returns at once for a finished one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raypp.cluster.prepare import TeacherLogits, featurize
from raypp.cluster.prepare_corpus import cut_corpus
from raypp.cluster.scratch import delete_leftovers, delete_scratch
from raypp.cluster.session import Session
from raypp.cluster.trainer import Supervision, run_job
from raypp.config import Experiment
from raypp.corpus.blocks import CutReport
from raypp.data.features import Features
from raypp.data.raw import RawData
from raypp.evaluation.evaluate import metrics_of
from raypp.evaluation.predictions import Predictions
from raypp.events import EventHandler, Message, PhaseAdvanced, PhaseFinished, PhaseStarted, ignore
from raypp.identity import versions
from raypp.kinds import TaskKind
from raypp.locks import locked
from raypp.models.model_input import ModelInput
from raypp.plan import Plan, Prepare, make_plan
from raypp.runs import clear_run, finished_result, model_checksums, start_run
from raypp.store import Artifact, Store
from raypp.training.job import Job
from raypp.training.training_rows import TRAIN_SPLIT
from raypp.writable import check_storage_writable, check_writable


def prepare(experiment: Experiment, *, on_event: EventHandler = ignore, verbose: bool = False) -> list[Artifact]:
    """Only fills the store: features, teacher, teacher logits. Returns the artifacts that a run would read."""
    with Session(experiment.cluster, verbose) as session:
        plan = make_plan(experiment, preparer(session, on_event))
        return prepare_plan(plan, session, on_event).artifacts


@dataclass(frozen=True)
class Inputs:
    """The artifacts in the store that a run reads."""

    features: dict[str, Artifact]
    """By split."""
    teacher_metrics: dict[str, float] | None
    logits: Artifact | None
    """The teacher's logits on the training split; None if the run reads none."""

    @property
    def artifacts(self) -> list[Artifact]:
        """All artifacts."""
        return [*self.features.values(), *([self.logits] if self.logits else [])]


def prepare_plan(
    plan: Plan, session: Session, on_event: EventHandler, features: dict[str, Artifact] | None = None
) -> Inputs:
    """Fills the store for a planned run.

    Args:
        features: of every split, if the caller has them already.
    """
    features = features or _features(plan, plan.student, session, on_event)
    teacher_metrics, logits = _teacher(plan, features, session, on_event)
    return Inputs(features, teacher_metrics, logits)


def make_job(
    plan: Plan, inputs: Inputs, *, phase: str, group: str | None = None, started_at: float | None = None
) -> Job:
    """The job of a planned run, ready to train. The arguments are those of `Job`."""
    return Job(
        experiment=plan.experiment,
        task=plan.task,
        run=plan.run,
        phase=phase,
        micro_batches=plan.micro_batches,
        vocabulary=plan.student.vocabulary,
        student_fingerprint=plan.student.fingerprint,
        train=inputs.features[TRAIN_SPLIT],
        evaluation={split: inputs.features[split] for split in plan.task.eval_splits},
        teacher_logits=inputs.logits,
        hidden_state_terms=plan.hidden_state_terms,
        teacher_fingerprint=plan.teacher.fingerprint if plan.teacher else None,
        trained_teacher=plan.trained_teacher,
        group=group,
        started_at=time.time() if started_at is None else started_at,
        provenance={"teacher_metrics": inputs.teacher_metrics, "identity": plan.digest, "versions": versions()},
    )


def run_plan(
    plan: Plan,
    session: Session,
    on_event: EventHandler,
    *,
    phase: str,
    fresh: bool = False,
    stored: bool = False,
    features: dict[str, Artifact] | None = None,
    started_at: float | None = None,
) -> dict[str, Any]:
    """Runs a planned run, or resumes it, and returns its result.

    Args:
        phase: its name in the display.
        fresh: first delete the files of an earlier run.
        stored: the run is in the store, like a teacher. If another process trains it, wait for that process; if its
            model is damaged, train it again.
        features: of every split, if the caller has them already.
        started_at: as in `train`.
    """
    result = None
    if not fresh:
        # Not found: another command deletes the run, and holds the lock until it is done.
        with contextlib.suppress(FileNotFoundError):
            result = _whole_result(plan, stored)
    if result is not None:  # a finished run needs no lock and no write access
        delete_leftovers(plan.run)
        on_event(PhaseFinished(phase, note="finished before"))
        return result
    if stored:
        check_writable(plan.store.location, "cluster.store")
    else:
        check_storage_writable(plan.experiment)
    with locked(plan.run, wait=stored):
        if fresh:
            clear_run(plan.run)
        if (result := _whole_result(plan, stored)) is not None:
            delete_scratch(plan.run)
            on_event(PhaseFinished(phase, note="finished before"))
            return result
        if finished_result(plan.run, plan.digest) is not None:
            on_event(Message(f"{phase}: the model in {plan.run} is damaged and is trained again"))
            clear_run(plan.run)
        if plan.experiment.cluster.max_workers:
            session.start()
            session.check_resources()
        start_run(plan.run.make_folder(), plan.experiment, plan.digest, versions())
        inputs = prepare_plan(plan, session, on_event, features)
        job = make_job(plan, inputs, phase=phase, started_at=started_at)
        on_event(PhaseStarted(phase, plan.steps.total))
        result = run_job(job, session, Supervision(on_event))
        on_event(PhaseFinished(phase, seconds=result["seconds"]))
        return result


def _whole_result(plan: Plan, stored: bool) -> dict[str, Any] | None:
    """The result of a finished run, or None. A run in the store is not finished if its model is damaged."""
    result = finished_result(plan.run, plan.digest)
    return None if result is not None and stored and result["model_files"] != model_checksums(plan.run) else result


def _features(plan: Plan, model: ModelInput, session: Session, on_event: EventHandler) -> dict[str, Artifact]:
    """The features of every split with a model's tokenizer, from the store or made now."""
    features = {}
    prepare = preparer(session, on_event)
    for split in plan.task.run_splits:
        artifact = plan.store.find("features", plan.features_key(split, model.tokenizer))
        if artifact is not None:
            on_event(PhaseFinished(f"features {split}", note="from the store"))
        features[split] = artifact or prepare(plan.raw, split, plan.kind, model, plan.store)
    return features


def preparer(session: Session, on_event: EventHandler, *, trains: bool = False) -> Prepare:
    """Returns the function that makes the features of a split on the session's cluster.

    Args:
        trains: the command trains afterwards, so a cluster that has no capacity for its workers is refused now.
    """

    def prepare(raw: RawData, split: str, kind: TaskKind, model: ModelInput, store: Store) -> Artifact:
        session.start()
        if trains and session.settings.max_workers:
            session.check_resources()
        session.check_can_prepare()
        with _phase(f"features {split}", on_event) as advance:
            make = cut_corpus if kind.cuts_texts else featurize
            artifact = make(raw, split, kind, str(model.folder), store, advance)
        if kind.cuts_texts:
            on_event(Message(f"{split}: {CutReport(**artifact.extra['report'])}"))
        return artifact

    return prepare


def _teacher(
    plan: Plan, features: dict[str, Artifact], session: Session, on_event: EventHandler
) -> tuple[dict[str, float] | None, Artifact | None]:
    """The teacher's dev metrics and, if a loss needs them, its logits on the training split; both None without a
    teacher."""
    distillation = plan.experiment.distillation
    needs_logits = distillation is not None and distillation.uses_logits and plan.kind.stores_teacher_logits
    if plan.teacher_plan is not None:
        own = _features_of(plan, plan.teacher_plan.student, features, session, on_event)
        result = run_plan(plan.teacher_plan, session, on_event, phase="teacher", stored=True, features=own)
        if not needs_logits:
            return result["metrics"], None
        with plan.teacher_plan.trained_model() as model:
            return result["metrics"], _logits(plan, model, own[TRAIN_SPLIT], session, on_event)
    if plan.teacher is None or not plan.kind.stores_teacher_logits:
        return None, None
    own = _features_of(plan, plan.teacher, features, session, on_event)
    predictions: dict[str, Predictions] = {}
    for split in plan.task.eval_splits:
        answers = _logits(plan, plan.teacher, own[split], session, on_event, f"teacher logits {split}")
        features_of_split = Features.from_table(own[split].read_table())
        answered = features_of_split.with_teacher_logits(answers.read_table(), plan.kind.outputs_per_token)
        assert answered.teacher_logits is not None
        predictions[split] = Predictions(answered, answered.teacher_logits)
    logits = _logits(plan, plan.teacher, own[TRAIN_SPLIT], session, on_event) if needs_logits else None
    return metrics_of(plan.kind, predictions), logits


def _features_of(
    plan: Plan, model: ModelInput, features: dict[str, Artifact], session: Session, on_event: EventHandler
) -> dict[str, Artifact]:
    """A model's features: the student's if it has the same tokenizer, else its own (logits are joined by row)."""
    if model.tokenizer == plan.student.tokenizer:
        return features
    return _features(plan, model, session, on_event)


def _logits(
    plan: Plan,
    model: ModelInput,
    features: Artifact,
    session: Session,
    on_event: EventHandler,
    phase: str = "teacher logits",
) -> Artifact:
    """A teacher's logits on a split, from the store or computed now."""
    logits = TeacherLogits.of(features, plan.kind, model.folder, model.fingerprint)
    if (artifact := logits.find(plan.store)) is not None:
        on_event(PhaseFinished(phase, note="from the store"))
        return artifact
    gpus = plan.experiment.cluster.gpus_per_worker
    session.start()
    session.check_can_prepare(gpus)
    with _phase(phase, on_event) as advance:
        return logits.make(plan.store, advance, gpus=gpus > 0)


@contextlib.contextmanager
def _phase(name: str, on_event: EventHandler) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a phase that counts rows. Yields the function that advances it."""
    before = time.monotonic()
    on_event(PhaseStarted(name))

    def advance(done: int, total: int | None) -> None:
        elapsed = max(time.monotonic() - before, 1e-9)
        on_event(PhaseAdvanced(name, done, total, rows_per_second=done / elapsed))

    yield advance
    on_event(PhaseFinished(name, seconds=time.monotonic() - before))
