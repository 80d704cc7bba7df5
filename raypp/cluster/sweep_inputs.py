"""The inputs of a sweep's trials: each is built once, for all trials that read the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raypp.cluster.pipeline import Inputs, make_job, prepare_plan
from raypp.cluster.session import Session
from raypp.events import EventHandler, PhaseFinished
from raypp.plan import Plan
from raypp.training.job import Job


@dataclass
class BuildCounts:
    """Passes events on, and counts by kind what they report as built."""

    on_event: EventHandler
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, event: Any) -> None:
        if isinstance(event, PhaseFinished) and event.note is None:  # a note says that it was in the store already
            self.counts["logits" if event.phase.startswith("teacher logits") else event.phase.split()[0]] += 1
        self.on_event(event)


@dataclass
class SharedInputs:
    """The inputs of all trials, and how often each kind was needed and built."""

    session: Session
    build_counts: BuildCounts
    group: str
    """The group of the trials in W&B."""
    needed: Counter[str] = field(default_factory=Counter)
    """How often trials needed each kind. What was not built for a trial was there already."""
    _inputs: dict[Any, Inputs] = field(default_factory=dict)

    def inputs_of(self, plan: Plan) -> Inputs:
        """The inputs of a planned run."""
        needs = (
            *(plan.features_key(split, plan.student.tokenizer) for split in plan.task.run_splits),
            plan.teacher_identity,
            plan.experiment.evaluation.answers,  # the teacher's metrics depend on it
            plan.experiment.distillation is not None and plan.experiment.distillation.uses_logits,
        )
        if needs not in self._inputs:
            # With the experiment's own settings: no trial runs while a teacher trains, so the teacher has all CPUs. The
            # CPUs that an autoscaling cluster will have are not known, so there it has those of a trial.
            settings = plan.experiment.cluster
            if settings.autoscaling:
                own = self.session.settings.cpus_per_worker
                settings = settings.model_copy(update={"cpus_per_worker": own})
            self._inputs[needs] = prepare_plan(plan, self.session.with_settings(settings), self.build_counts)
        return self._inputs[needs]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many inputs of each kind were built, and how often a trial found one that was there already."""
        reused = {kind: max(0, needed - self.build_counts.counts[kind]) for kind, needed in self.needed.items()}
        return {"built": {kind: self.build_counts.counts[kind] for kind in self.needed}, "reused": reused}

    def job_of(self, plan: Plan) -> Job:
        """A planned run with its inputs, ready to train."""
        inputs = self.inputs_of(plan)
        self.needed["features"] += len(inputs.features)
        self.needed["teacher"] += plan.teacher_plan is not None
        self.needed["logits"] += inputs.logits is not None
        return make_job(plan, inputs, phase="trial", group=self.group)
