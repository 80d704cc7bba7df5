"""The experiment: all sections together."""

from __future__ import annotations

from pydantic import Field

from raypp.config.base import Name, Settings
from raypp.config.cluster import ClusterSettings
from raypp.config.data import DataSettings, LanguageModelingTask, OwnTask
from raypp.config.distillation import DistillationSettings
from raypp.config.evaluation import EvaluationSettings
from raypp.config.pruning import PruningSettings
from raypp.config.sweep import SweepSettings
from raypp.config.tracking import TrackingSettings
from raypp.config.training import StudentSettings, TeacherSettings, TrainSettings


class Experiment(Settings):
    """One experiment: everything that `raypp train` needs to know."""

    name: Name
    """Folder of its runs. An experiment file may leave it out: then it is the file's name without .yaml."""
    run: Name | None = None
    """Folder of this run; null: a short readable hash of everything that determines its result."""
    task: str | OwnTask | LanguageModelingTask
    """A task of the table by name, or one's own as a section. The table has GLUE's (cola, sst2, mrpc, qqp, stsb, mnli,
    qnli, rte, wnli, and ax for evaluation alone), swag, squad, squad_v2 and the synthetic sentiment, paraphrase and
    similarity. One's own: {name, kind, pair, labels, unanswerable}; for language modelling {name, kind, objective,
    masking}."""
    data: DataSettings = DataSettings()
    """Where the examples come from."""
    student: StudentSettings
    """The pretrained encoder."""
    teacher: TeacherSettings | None = None
    """The dense model to follow; null for none."""
    pruning: PruningSettings | None = None
    """How to prune, by its `method`; null for a dense run."""
    distillation: DistillationSettings | None = None
    """Weights of the losses; null: the defaults where there is a teacher. Not without one."""
    train: TrainSettings = Field(default_factory=lambda: TrainSettings.model_validate({}))
    """Length, batches, optimizer."""
    evaluation: EvaluationSettings = Field(default_factory=lambda: EvaluationSettings.model_validate({}))
    """When to evaluate, what to deliver."""
    cluster: ClusterSettings = ClusterSettings()
    """Where it runs."""
    tracking: TrackingSettings = TrackingSettings()
    """Where it is recorded."""
    sweep: SweepSettings | None = None
    """What `raypp sweep` tries; a single run has none."""
