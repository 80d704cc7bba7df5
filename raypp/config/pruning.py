"""Settings of pruning: each method has a model of its own, chosen by `method`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from raypp.config.base import Density, Names, Settings

# The original scripts' spellings, so that their users' habits work.
METHOD_ALIASES = {"topK": "topk", "sigmoied_threshold": "sigmoid_threshold", "TopK": "topk", "L0": "l0"}


def method_name(spelling: str) -> str:
    """A pruning method's name, from any spelling of the original scripts."""
    return METHOD_ALIASES.get(spelling, spelling)


# Where the search for lambda begins if nothing is said: what the small encoders' soft movement pruning was run with.
FIRST_LAMBDA = 100.0


class Penalty(Settings):
    """The regularizer on scores: it pushes them down, and with them the density of the methods that have a threshold or
    gates."""

    kind: Literal["l1", "l0"]
    """l1: mean of sigmoid(scores); l0: mean probability that a hard concrete gate is open."""
    final_lambda: Annotated[float, Field(ge=0)]
    """Its weight at the end; it follows the threshold's schedule from 0. With a target_density: a first guess."""
    mean: Literal["per_matrix", "global"] = "per_matrix"
    """per_matrix: every matrix counts the same (as in the paper); global: every score counts the same."""


class ScoreInitialization(Settings):
    """How the scores start."""

    kind: Literal["constant", "uniform", "kaiming"] = "constant"
    """constant: all `scale`; uniform: in [-scale, scale]; kaiming: Kaiming-uniform with a = sqrt(5), times scale."""
    scale: float = 0.0
    """Constant's value, or the spread of the others."""

    @model_validator(mode="after")
    def _spread_is_positive(self) -> ScoreInitialization:
        if self.kind != "constant" and self.scale <= 0:
            raise ValueError(f"scale must be greater than 0 for {self.kind}, got {self.scale}")
        return self


class LayerRule(Settings):
    """Which linear layers are pruned, by regular expressions that are searched in the layers' names inside the encoder,
    such as `encoder.layer.0.attention.self.query`. Embeddings, pooler and head are never pruned. `raypp show` lists
    them."""

    include: Names = (r".",)
    """A layer is pruned if one of these is found in its name …"""
    exclude: Names = ()
    """… and none of these is."""


class PruningBase(Settings):
    """What all pruning methods share."""

    initial_warmup: Annotated[int, Field(ge=0)] = 1
    """Warmups, of as many steps as the learning rate's (train.warmup_steps or warmup_fraction) each, before the
    schedule leaves its initial value. Between it and the final warmup the schedule is cubic."""
    final_warmup: Annotated[int, Field(ge=0)] = 2
    """Warmups at the end, at the final value."""
    layers: LayerRule = LayerRule()
    """Which linear layers are pruned."""

    @property
    def requested_density(self) -> float | None:
        """The density asked for; None where a threshold or the penalty's lambda is what was given."""
        return None


class ScoredPruning(PruningBase):
    """A method with learned scores."""

    mask_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the scores; their weight decay is 0."""
    score_initialization: ScoreInitialization = ScoreInitialization()
    """How the scores start."""
    penalty: Penalty | None = None
    """The regularizer on scores; null for none, which suits topk. Of sigmoid_threshold, threshold and l0 it is what
    brings the density down: without it, and without a target_density, which brings one, only the loss moves scores, and
    little is pruned."""


class DensityPruning(Settings):
    """From one density to another, for the methods that keep so many weights."""

    scope: Literal["local", "global"] = "local"
    """local: the density holds in each matrix; global: over all matrices together."""
    initial_density: Density = 1.0
    """Density until the initial warmup ends."""
    final_density: Density = 0.15
    """Density from the beginning of the final warmup on."""

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
    """Movement pruning: keep the weights with the highest learned scores (Sanh et al. 2020, section 3)."""

    method: Literal["topk"]


class MagnitudePruning(DensityPruning, PruningBase):
    """Keep the weights of the largest magnitude (Zhu and Gupta 2017)."""

    method: Literal["magnitude"]


class FisherPruning(DensityPruning, PruningBase):
    """Keep the weights that the loss would miss most, by the diagonal of the empirical Fisher information.

    A weight's score is a running mean of n (w g)^2, w the weight and g the gradient for it of the loss, a mean over the
    n rows of a global batch: twice what the loss rises by when the weight goes to 0, to second order and without the
    other weights (LeCun et al. 1990, "Optimal Brain Damage"; Kurtic et al. 2022 with blocks of one weight). Pruned
    weights have gradients as well, and may come back.

    In a loop of your own, `raypp.training.optim.build_optimizer` makes the optimizer that keeps these means; where
    batches differ in size, as the last of an epoch does, its step is told of it: `optimizer.step(rows=n)`.
    """

    method: Literal["fisher"]
    scope: Literal["local", "global"] = "global"
    """global: over all matrices together, since these scores are all in the loss's unit; local: in each matrix."""
    initial_warmup: Annotated[int, Field(ge=0)] = 0
    """As of every method, but none: these scores need no steps to find a direction."""
    final_warmup: Annotated[int, Field(ge=0)] = 4
    """As of every method, but longer, for what is left to recover in."""
    fisher_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """What the running mean keeps of itself at a step: 0.99 looks back about 100 steps."""


class TargetedPruning(ScoredPruning):
    """A method whose density follows from its scores, and so from the penalty's lambda."""

    target_density: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Density of the delivered model; null: what penalty.final_lambda leads to.

    With one, the density falls from 1 by the schedule's cubic and is this from the beginning of the final warmup on,
    over all matrices together. Lambda is moved at every step (`pruning/controller.py`), from penalty.final_lambda as a
    first guess (null penalty: l1, for l0 l0, and a default), so that the scores reach the final threshold (l0: the
    score at which a gate closes) when the final warmup begins. Until they do, and where they cannot in time (scores
    move by about the mask learning rate a step, at most), the threshold in force is the one that keeps the requested
    density."""

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
                "penalty.final_lambda is where the search for lambda begins when there is a target_density; it must be "
                "greater than 0, got 0.0; leave penalty out for a default"
            )
        return self


class ThresholdPruningBase(TargetedPruning):
    """What the two threshold methods share."""

    initial_threshold: float = 0.0
    """Threshold until the initial warmup ends; with a target_density, which begins at a density of 1, there is none."""
    density_floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    """At least this part of each matrix is kept, whatever the threshold says."""

    @model_validator(mode="after")
    def _target_fits(self) -> ThresholdPruningBase:
        if self.target_density is not None and self.target_density <= self.density_floor:
            raise ValueError(
                f"target_density must be above density_floor, which is kept of each matrix, got {self.target_density} "
                f"with a density_floor of {self.density_floor}"
            )
        if self.target_density is not None and self.initial_threshold != 0:
            raise ValueError(
                "initial_threshold has no meaning with a target_density, which begins at a density of 1; leave it out, "
                f"got {self.initial_threshold}"
            )
        return self


class SigmoidThresholdPruning(ThresholdPruningBase):
    """Soft movement pruning: keep the weights with sigmoid(score) above a threshold (Sanh et al. 2020, section 4),
    while a penalty pushes the scores down."""

    method: Literal["sigmoid_threshold"]
    initial_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Threshold until the initial warmup ends; not with a target_density."""
    final_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Threshold from the beginning of the final warmup on."""

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> SigmoidThresholdPruning:
        if self.target_density is not None and self.final_threshold == 0:
            raise ValueError(
                "final_threshold must be greater than 0 with a target_density: no sigmoid is below 0, got 0.0"
            )
        return self


class ThresholdPruning(ThresholdPruningBase):
    """Keep the weights whose score is above a threshold, while a penalty pushes the scores down."""

    method: Literal["threshold"]
    score_initialization: ScoreInitialization = ScoreInitialization(kind="constant", scale=2.197)
    """How the scores start; at or below initial_threshold a weight is off from the first step on. 2.197 is about as far
    above the usual final_threshold as the scores of sigmoid_threshold start above theirs."""
    initial_threshold: float = 0.0
    """Threshold until the initial warmup ends; not with a target_density."""
    final_threshold: float = 0.1
    """Threshold from the beginning of the final warmup on."""


class L0Pruning(TargetedPruning):
    """L0 regularization with hard concrete gates (Louizos et al. 2018); the penalty's lambda sets the density. Without
    penalty and target_density only the loss moves gates, and little is pruned."""

    method: Literal["l0"]
    score_initialization: ScoreInitialization = ScoreInitialization(kind="constant", scale=2.197)
    """How the scores (log alpha) start; 2.197 opens a gate with probability 0.9 and more, as the original did."""


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
