"""The whole experiment: all sections in one class."""

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
    """The settings of one experiment."""

    name: Name
    """Name of the experiment and of the folder of its runs. If a file leaves it out, it is the file's name without
    .yaml."""
    run: Name | None = None
    """Name of this run's folder; null: a readable name that ends in a hash of everything that determines the result."""
    task: str | OwnTask | LanguageModelingTask
    """The name of a built-in task, or a user-defined task as a section. Built-in are GLUE's tasks (cola, sst2, mrpc,
    qqp, stsb, mnli, qnli, rte, wnli, and ax for evaluation only), swag, squad, squad_v2, and the synthetic tasks
    sentiment, paraphrase and similarity. A user-defined task has the fields {name, kind, pair, labels, unanswerable},
    or for language modelling {name, kind, objective, masking}."""
    data: DataSettings = DataSettings()
    """Where the examples come from."""
    student: StudentSettings
    """The pretrained encoder that is fine-tuned and pruned."""
    teacher: TeacherSettings | None = None
    """The dense model that the student follows; null: no teacher."""
    pruning: PruningSettings | None = None
    """The pruning method and its settings; null: a dense run."""
    distillation: DistillationSettings | None = None
    """Weights of the losses; null: the defaults. Allowed only with a teacher."""
    train: TrainSettings = Field(default_factory=lambda: TrainSettings.model_validate({}))
    """Length, batches and optimizer of the training."""
    evaluation: EvaluationSettings = Field(default_factory=lambda: EvaluationSettings.model_validate({}))
    """When to evaluate, and which model to deliver."""
    cluster: ClusterSettings = ClusterSettings()
    """Where the experiment runs, and where its files are."""
    tracking: TrackingSettings = TrackingSettings()
    """Where metrics and figures are recorded."""
    sweep: SweepSettings | None = None
    """What `raypp sweep` tries; null: a single run."""
