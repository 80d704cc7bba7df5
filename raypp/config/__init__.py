"""Every setting of an experiment, once: its type, range, default and meaning.

The models are frozen and strict: an unknown key, a string where a number belongs or a value out of range is refused.
What one section says about another (a density with a threshold method, a soft loss without a teacher) is checked in
`raypp.plan_checks`. Reading YAML and turning pydantic's findings into a `ConfigError` is `raypp.load_config`'s work.
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
