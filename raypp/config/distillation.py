"""Settings of distillation: how the losses are weighed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import LayerNumber, Settings

LayerPair = Annotated[tuple[LayerNumber, LayerNumber], Strict(False)]


class DistillationSettings(Settings):
    """How the hard loss (the labels), those on the teacher's logits (soft, logits) and those on its hidden states
    (hidden, cosine) are weighed."""

    soft_weight: Annotated[float, Field(ge=0)] = 0.9
    """Weight of the soft loss: the Kullback-Leibler divergence of the student's softened distribution from the
    teacher's; in regression the squared distance of their values."""
    hard_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the hard loss: the one of a run without a teacher."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softens both distributions; the loss is multiplied by its square. Without effect in regression."""
    soft_tokens: Literal["targets", "all"] = "targets"
    """In language modelling, where the soft and the logits loss are taken: at the tokens to predict, or at every
    token."""
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the hidden loss, on the hidden states of hidden_layers. Above 0 the teacher runs beside the student and
    must have the student's tokenizer; 0: its stored logits are enough."""
    hidden_layers: Annotated[tuple[LayerPair, ...], Strict(False), Field(min_length=1)] | None = None
    """Pairs [student layer, teacher layer] whose hidden states are compared; 0 is the embeddings' output, as in Hugging
    Face's hidden_states. null: each layer m = 1 … S of the student with layer ceil(m T / S) of the teacher's T. The
    loss is the mean over pairs. Where the two models' widths differ, each pair learns a linear projection."""
    hidden_kind: Literal["mse", "cosine"] = "mse"
    """How states are compared: mse, the mean squared error over real tokens and width (as TinyBERT); cosine, 1 - their
    cosine similarity, the mean over real tokens."""
    cosine_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the cosine loss: 1 - the cosine similarity of both models' last hidden states, the mean over real
    tokens (as DistilBERT). Above 0 the teacher runs beside the student, as with hidden_weight."""
    logits_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the logits loss, the mean squared error between both models' logits, whatever the temperature."""

    @model_validator(mode="after")
    def _some_loss(self) -> DistillationSettings:
        if self.soft_weight == 0 and self.hard_weight == 0 and self.logits_weight == 0:
            raise ValueError(
                "soft_weight, hard_weight and logits_weight are all 0: the model's outputs would not be learned"
            )
        return self

    @model_validator(mode="after")
    def _hidden_loss_is_meant(self) -> DistillationSettings:
        for name in ("hidden_layers", "hidden_kind"):
            if name in self.model_fields_set and "hidden_weight" not in self.model_fields_set:
                raise ValueError(f"{name} belongs to hidden_weight, which is not given; without it there is none")
        if self.hidden_layers is not None and len(set(self.hidden_layers)) < len(self.hidden_layers):
            raise ValueError(f"hidden_layers: every pair may stand once, got {[list(p) for p in self.hidden_layers]}")
        return self
