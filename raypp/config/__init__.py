"""All settings of an experiment: type, range, default and meaning of each.

The models are frozen and strict: they refuse an unknown key, a string in place of a number, and a value out of range.
`raypp.plan_checks` checks what concerns several sections (distillation without a teacher, for example).
`raypp.load_config` reads YAML and turns pydantic's errors into a `ConfigError`.
"""

from raypp.config.base import ALTERNATIVES, Settings
from raypp.config.cluster import ClusterSettings
from raypp.config.data import (
    Columns,
    DataSettings,
    FilesSource,
    GlueTextSource,
    HubSource,
    HubTextSource,
    Kind,
    LanguageModelingTask,
    MaskingSettings,
    OfficialSource,
    OwnTask,
    Quotes,
    Source,
    SyntheticSource,
    Texts,
    TextSource,
)
from raypp.config.distillation import DistillationSettings
from raypp.config.evaluation import AnswerSettings, EvaluationSettings
from raypp.config.experiment import Experiment
from raypp.config.pruning import (
    METHOD_LABELS,
    DensityPruning,
    FisherPruning,
    L0Pruning,
    LayerRule,
    MagnitudePruning,
    PruningSettings,
    ScoredPruning,
    ScoreInitialization,
    SigmoidThresholdPruning,
    TargetedPruning,
    ThresholdPruning,
    ThresholdPruningBase,
    TopKPruning,
    method_name,
)
from raypp.config.sweep import Axis, StoppingSettings, SweepSettings
from raypp.config.tracking import TrackingSettings
from raypp.config.training import StudentSettings, TeacherSettings, TrainSettings

__all__ = [
    "ALTERNATIVES",
    "METHOD_LABELS",
    "AnswerSettings",
    "Axis",
    "ClusterSettings",
    "Columns",
    "DataSettings",
    "DensityPruning",
    "DistillationSettings",
    "EvaluationSettings",
    "Experiment",
    "FilesSource",
    "FisherPruning",
    "GlueTextSource",
    "HubSource",
    "HubTextSource",
    "Kind",
    "L0Pruning",
    "LanguageModelingTask",
    "LayerRule",
    "MagnitudePruning",
    "MaskingSettings",
    "OfficialSource",
    "OwnTask",
    "PruningSettings",
    "Quotes",
    "ScoreInitialization",
    "ScoredPruning",
    "Settings",
    "SigmoidThresholdPruning",
    "Source",
    "StoppingSettings",
    "StudentSettings",
    "SweepSettings",
    "SyntheticSource",
    "TargetedPruning",
    "TeacherSettings",
    "TextSource",
    "Texts",
    "ThresholdPruning",
    "ThresholdPruningBase",
    "TopKPruning",
    "TrackingSettings",
    "TrainSettings",
    "method_name",
]
