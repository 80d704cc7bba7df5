"""Settings of distillation: the weights of the losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import LayerNumber, Settings

LayerPair = Annotated[tuple[LayerNumber, LayerNumber], Strict(False)]


class DistillationSettings(Settings):
    """Weights of the losses. The loss of a step is the weighted sum of the hard loss (on the labels), the soft and
    logits losses (on the teacher's logits), and the hidden and cosine losses (on the teacher's hidden states)."""

    soft_weight: Annotated[float, Field(ge=0)] = 0.9
    """Weight of the soft loss: the Kullback-Leibler divergence KL(teacher || student) of the two distributions,
    softened by the temperature; in regression, the squared error between student and teacher."""
    hard_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the hard loss: the task's own loss on the labels, which is the only loss of a run without a teacher."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature that softens both distributions in the soft loss, which is then multiplied by its square. It has no
    effect in regression."""
    soft_tokens: Literal["targets", "all"] = "targets"
    """Language modelling: where the soft and logits losses are computed. targets: at the tokens to predict; all: at
    every token."""
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the hidden loss, which compares the hidden states of hidden_layers. Above 0, the teacher runs next to
    the student during training and must have the student's tokenizer. 0: the stored logits of the teacher are
    enough."""
    hidden_layers: Annotated[tuple[LayerPair, ...], Strict(False), Field(min_length=1)] | None = None
    """Pairs [student layer, teacher layer] whose hidden states are compared; layer 0 is the output of the embeddings,
    as in Hugging Face's hidden_states. null: each layer m = 1 … S of the student with layer ceil(m T / S) of the
    teacher, which has T. The hidden loss is the mean over the pairs. If the widths of the two models differ, each pair
    learns a linear projection."""
    hidden_kind: Literal["mse", "cosine"] = "mse"
    """The distance that the hidden loss measures between two hidden states. It does not choose which states are
    compared: that is hidden_layers. mse: mean squared error over real tokens and width (as in TinyBERT); cosine: 1 -
    cosine similarity, averaged over real tokens."""
    cosine_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the cosine loss: 1 - cosine similarity of the last hidden states of both models, averaged over real
    tokens (as in DistilBERT). It is independent of hidden_weight and hidden_kind. Above 0, the teacher runs next to the
    student, as with hidden_weight."""
    logits_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the logits loss: the mean squared error between the logits of both models. The temperature has no
    effect on it."""

    @model_validator(mode="after")
    def _some_loss(self) -> DistillationSettings:
        if self.soft_weight == 0 and self.hard_weight == 0 and self.logits_weight == 0:
            raise ValueError(
                "soft_weight, hard_weight and logits_weight are all 0, so the model's outputs would not be trained; "
                "give one of them a weight above 0"
            )
        return self

    @model_validator(mode="after")
    def _hidden_loss_is_meant(self) -> DistillationSettings:
        for name in ("hidden_layers", "hidden_kind"):
            if name in self.model_fields_set and "hidden_weight" not in self.model_fields_set:
                raise ValueError(f"{name} has no effect without hidden_weight; give hidden_weight, or leave {name} out")
        if self.hidden_layers is not None and len(set(self.hidden_layers)) < len(self.hidden_layers):
            raise ValueError(f"hidden_layers: pairs must be unique, got {[list(p) for p in self.hidden_layers]}")
        return self

    @property
    def uses_logits(self) -> bool:
        """Whether a loss has a weight that compares the student with the teacher's logits."""
        return bool(self.soft_weight or self.logits_weight)
