"""Settings of pruning. Each method has a class of its own, selected by `method`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from raypp.config.base import Density, Names, Settings

# The spellings of the original scripts, which are accepted in experiment files.
METHOD_ALIASES = {"topK": "topk", "sigmoied_threshold": "sigmoid_threshold", "TopK": "topk", "L0": "l0"}

METHOD_LABELS = {
    "topk": "movement",
    "sigmoid_threshold": "soft movement",
    "magnitude": "magnitude",
    "fisher": "Fisher",
    "l0": "L0",
    "threshold": "threshold",
}
"""The label of each method in figures and reports."""


def method_name(spelling: str) -> str:
    """The name of a pruning method, given its name or a spelling of the original scripts."""
    return METHOD_ALIASES.get(spelling, spelling)


# The search for lambda starts here by default: the value with which soft movement pruning of small encoders was run.
FIRST_LAMBDA = 100.0


class Penalty(Settings):
    """The regularizer on scores. It lowers the scores, and with them the density of the methods that have a threshold
    or gates."""

    kind: Literal["l1", "l0"]
    """l1: mean of sigmoid(scores); l0: mean probability that a hard concrete gate is open."""
    final_lambda: Annotated[float, Field(ge=0)]
    """Weight of the penalty at the end of training. Lambda rises from 0 to it, with the progress of the pruning
    schedule. With a target_density it is only the initial guess for lambda."""
    mean: Literal["per_matrix", "global"] = "per_matrix"
    """How scores are averaged. per_matrix: every matrix has the same weight (as in the paper); global: every score has
    the same weight."""


class ScoreInitialization(Settings):
    """The initial scores."""

    kind: Literal["constant", "uniform", "kaiming"] = "constant"
    """constant: all scores are `scale`; uniform: uniform in [-scale, scale]; kaiming: Kaiming-uniform with a = sqrt(5),
    times `scale`."""
    scale: float = 0.0
    """The constant value, or the scale of the random values."""

    @model_validator(mode="after")
    def _spread_is_positive(self) -> ScoreInitialization:
        if self.kind != "constant" and self.scale <= 0:
            raise ValueError(f"scale must be greater than 0 for {self.kind}, got {self.scale}")
        return self


class LayerRule(Settings):
    """Which linear layers are pruned, by regular expressions on the names that layers have inside the encoder, such as
    `encoder.layer.0.attention.self.query`. Embeddings, pooler and head are never pruned. `raypp show` lists the layers
    that are."""

    include: Names = (r".",)
    """A layer is pruned if one of these expressions is found in its name (with Python's `re.search`) and none of
    `exclude` is."""
    exclude: Names = ()
    """Layers that are not pruned, though `include` selects them."""


class PruningBase(Settings):
    """Settings that all pruning methods have. The density, threshold or lambda is at its initial value during the
    initial warmup and at its final value during the final warmup; between the two it follows a cubic curve."""

    initial_warmup: Annotated[int, Field(ge=0)] = 1
    """Length of the initial warmup, as a multiple of the learning rate's warmup (train.warmup_steps or
    warmup_fraction)."""
    final_warmup: Annotated[int, Field(ge=0)] = 2
    """Length of the final warmup, at the end of training, as a multiple of the learning rate's warmup."""
    layers: LayerRule = LayerRule()
    """Which linear layers are pruned."""

    @property
    def requested_density(self) -> float | None:
        """The density that the settings ask for; None if they give a threshold or lambda instead."""
        return None


class ScoredPruning(PruningBase):
    """A method with learned scores."""

    mask_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the scores. Scores have no weight decay."""
    score_initialization: ScoreInitialization = ScoreInitialization()
    """The initial scores."""
    penalty: Penalty | None = None
    """The regularizer on scores; null: no penalty, as is usual for topk. sigmoid_threshold, threshold and l0 need a
    penalty to reduce the density: without one, only the loss changes the scores, and little is pruned. A target_density
    adds a penalty by itself."""


class DensityPruning(Settings):
    """The schedule of the methods that keep a given fraction of the weights."""

    scope: Literal["local", "global"] = "local"
    """local: each matrix has the scheduled density; global: all matrices together have it."""
    initial_density: Density = 1.0
    """Density during the initial warmup."""
    final_density: Density = 0.15
    """Density from the start of the final warmup to the end, and so of the delivered model."""

    @model_validator(mode="after")
    def _goes_down(self) -> DensityPruning:
        if self.final_density > self.initial_density:
            raise ValueError(
                f"final_density must not exceed initial_density, got {self.final_density} > {self.initial_density}"
            )
        return self

    @property
    def requested_density(self) -> float | None:
        return self.final_density


class TopKPruning(DensityPruning, ScoredPruning):
    """Movement pruning: keeps the weights with the highest learned scores (Sanh et al. 2020, section 3)."""

    method: Literal["topk"]


class MagnitudePruning(DensityPruning, PruningBase):
    """Magnitude pruning: keeps the weights of the largest magnitude (Zhu and Gupta 2017)."""

    method: Literal["magnitude"]


class FisherPruning(DensityPruning, PruningBase):
    """Second-order pruning: keeps the weights whose removal would raise the loss most, estimated by the diagonal of the
    empirical Fisher information.

    The score of a weight is the running mean of n (w g)^2, where w is the weight and g is the gradient of the mean loss
    over the n rows of a global batch (language modelling: its n targets). To second order, and for the other weights
    unchanged, this is twice the increase of the loss when the weight is set to 0 (LeCun et al. 1990, "Optimal Brain
    Damage"; Kurtic et al. 2022 with blocks of one weight). Pruned weights also have gradients, so they may return.

    In a training loop of your own, `raypp.training.optim.build_optimizer` makes the optimizer that keeps these means.
    If batches differ in size, as the last one of an epoch does, give each step its size: `optimizer.step(rows=n)`.
    """

    method: Literal["fisher"]
    scope: Literal["local", "global"] = "global"
    """global: all matrices together have the scheduled density, because the scores of all matrices have the unit of the
    loss; local: each matrix has it."""
    initial_warmup: Annotated[int, Field(ge=0)] = 0
    """As for other methods; default 0, because these scores need no warmup."""
    final_warmup: Annotated[int, Field(ge=0)] = 4
    """As for other methods; longer by default, to let the pruned model recover."""
    fisher_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Decay of the running mean per step; 0.99 averages over about 100 steps."""


class TargetedPruning(ScoredPruning):
    """A method whose density results from its scores, and so from the penalty's lambda."""

    target_density: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Density of the delivered model; null: the density that penalty.final_lambda leads to.

    With a target density, the density falls from 1 along the cubic schedule. From the start of the final warmup on, all
    matrices together have the target density. raypp adjusts lambda at every step (`pruning/controller.py`) so that the
    scores reach the final threshold (l0: the score at which a gate closes) when the final warmup starts. The initial
    guess for lambda is penalty.final_lambda; without a penalty, raypp adds one (l1; for l0: l0) with a default guess.
    A score changes by about the mask learning rate per step at most. While the scores have not reached the final
    threshold, raypp prunes at the threshold that gives the scheduled density."""

    @property
    def requested_density(self) -> float | None:
        return self.target_density

    @model_validator(mode="before")
    @classmethod
    def _a_target_has_a_penalty(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("target_density") is not None and values.get("penalty") is None:
            kind = "l0" if values.get("method") == "l0" else "l1"
            return {**values, "penalty": {"kind": kind, "final_lambda": FIRST_LAMBDA}}
        return values

    @model_validator(mode="after")
    def _lambda_can_move(self) -> TargetedPruning:
        if self.target_density is not None and self.penalty is not None and self.penalty.final_lambda == 0:
            raise ValueError(
                "penalty.final_lambda is the initial guess for lambda when there is a target_density; it must be "
                "greater than 0, got 0.0; leave penalty out for a default"
            )
        return self


class ThresholdPruningBase(TargetedPruning):
    """Settings of both threshold methods."""

    initial_threshold: float = 0.0
    """Threshold during the initial warmup. Not allowed with a target_density, which starts at a density of 1."""
    density_floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    """Minimum density of each matrix: this fraction of its weights is kept at any threshold."""

    @model_validator(mode="after")
    def _target_fits(self) -> ThresholdPruningBase:
        if self.target_density is not None and self.target_density <= self.density_floor:
            raise ValueError(
                f"target_density must be above density_floor, the minimum density of each matrix, got "
                f"{self.target_density} with a density_floor of {self.density_floor}"
            )
        if self.target_density is not None and self.initial_threshold != 0:
            raise ValueError(
                "initial_threshold has no effect with a target_density, which starts at a density of 1; leave it out, "
                f"got {self.initial_threshold}"
            )
        return self


class SigmoidThresholdPruning(ThresholdPruningBase):
    """Soft movement pruning: keeps the weights whose sigmoid(score) is above a threshold, while a penalty lowers the
    scores (Sanh et al. 2020, section 4)."""

    method: Literal["sigmoid_threshold"]
    initial_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Threshold during the initial warmup. Not allowed with a target_density."""
    final_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Threshold from the start of the final warmup to the end."""

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> SigmoidThresholdPruning:
        if self.target_density is not None and self.final_threshold == 0:
            raise ValueError(
                "final_threshold must be greater than 0 with a target_density, because no sigmoid is below 0; got 0.0"
            )
        return self


class ThresholdPruning(ThresholdPruningBase):
    """Threshold pruning: keeps the weights whose score is above a threshold, while a penalty lowers the scores."""

    method: Literal["threshold"]
    score_initialization: ScoreInitialization = ScoreInitialization(kind="constant", scale=2.197)
    """The initial scores. A weight whose score is at or below initial_threshold is pruned from the first step on. 2.197
    is about as far above the default final_threshold as the initial scores of sigmoid_threshold are above theirs."""
    initial_threshold: float = 0.0
    """Threshold during the initial warmup. Not allowed with a target_density."""
    final_threshold: float = 0.1
    """Threshold from the start of the final warmup to the end."""


class L0Pruning(TargetedPruning):
    """L0 regularization with hard concrete gates (Louizos et al. 2018). The penalty's lambda determines the density:
    without penalty and target_density, only the loss changes the gates, and little is pruned."""

    method: Literal["l0"]
    score_initialization: ScoreInitialization = ScoreInitialization(kind="constant", scale=2.197)
    """The initial scores (log alpha). With 2.197 a gate is open with a probability of at least 0.9, as in the
    original."""


def _method_of(value: Any) -> Any:
    return value.get("method") if isinstance(value, dict) else getattr(value, "method", None)


def _resolve_method_alias(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("method"), str):
        return {**value, "method": method_name(value["method"])}
    return value


PruningSettings = Annotated[
    Annotated[TopKPruning, Tag("topk")]
    | Annotated[MagnitudePruning, Tag("magnitude")]
    | Annotated[FisherPruning, Tag("fisher")]
    | Annotated[SigmoidThresholdPruning, Tag("sigmoid_threshold")]
    | Annotated[ThresholdPruning, Tag("threshold")]
    | Annotated[L0Pruning, Tag("l0")],
    Discriminator(_method_of),
    BeforeValidator(_resolve_method_alias),
]
