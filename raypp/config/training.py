"""Settings of the models and of one fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import DecayRate, LayerNumber, Settings, one_of_each


class StudentSettings(Settings):
    """The pretrained encoder that is fine-tuned and pruned."""

    model: str
    """A folder, a hub name, or `package:NAME/SUBFOLDER` of an installed Python package."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; null for the default branch."""
    layers: Annotated[tuple[LayerNumber, ...], Strict(False), Field(min_length=1)] | None = None
    """Only these of the model's layers, numbered from 0, with everything else of it: how a smaller student begins as
    its teacher. null: all."""
    config: dict[str, Any] | str | None = None
    """A new model, initialised at random, of which `model` gives the tokenizer: changes to the model's configuration
    ({num_hidden_layers: 3}) or, with a model_type, a configuration of its own; or a JSON file that holds either. null:
    the pretrained model."""
    start: Literal["pretrained", "teacher"] = "pretrained"
    """Which weights it starts from. pretrained: the model's, under a new head; teacher: the fine-tuned teacher's, head
    included, which must have the shape of the model."""

    @model_validator(mode="after")
    def _one_beginning(self) -> StudentSettings:
        if self.layers is not None and self.config is not None:
            raise ValueError("layers and config exclude each other: a new model has no layers to choose from")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers: numbers must rise, got {list(self.layers)}")
        if self.start == "teacher" and self.config is not None:
            raise ValueError("start: teacher and config exclude each other: a new model is initialised at random")
        return self


class TrainSettings(Settings):
    """One fine-tuning: length, batches, optimizer."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training split (3 where neither this nor max_steps is given); may be fractional."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps, exactly; instead of epochs."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples of one optimizer step, over all workers: the global batch (32 where neither this nor batch_tokens is
    given)."""
    batch_tokens: Annotated[int, Field(ge=8)] | None = None
    """Tokens of a global batch, padding to its longest example included; instead of batch_size. Longer examples come in
    smaller batches. Not of plain text, which comes in blocks of one size."""
    micro_batches: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Fixed shares that a global batch is cut into: share m runs on worker m mod the number of workers, with dropout of
    its own. So it is the same run on any number of workers as long as this is the same number, which must be at least
    that of the workers. auto: the most workers that cluster.workers asks for, at least 1; other workers are another run
    then."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-5
    """Peak learning rate of the weights."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Part of all steps in which the learning rate rises (0.1 where neither this nor warmup_steps is given)."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the learning rate rises, before it falls linearly to 0; instead of warmup_fraction."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled decay of weights (never of biases, LayerNorm or scores)."""
    adam_betas: Annotated[tuple[DecayRate, DecayRate], Strict(False)] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Weights' and scores' gradients are clipped together to this norm (without those that fisher's scores are made
    of); null: no clipping."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability of every dropout of the model; null: as the model has it."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of forward and backward (torch's autocast, with a scaled loss for float16); weights, scores and
    optimizer stay in float32."""
    freeze_embeddings: bool | None = None
    """Keep the embeddings (of tokens, positions and token types, with their LayerNorm) as they are; null: yes when
    pruning (as in the paper), no in a dense run or where they are random (student.config)."""
    freeze_position_embeddings: bool = False
    """Keep the embeddings of positions as they are."""
    freeze_token_type_embeddings: bool = False
    """Keep the embeddings of token types as they are."""
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between two lines of training metrics in metrics.jsonl; each has the means since the one before."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the head's initialisation, initial scores, the batches' order, dropout and L0 noise."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_two_ways(cls, values: Any) -> Any:
        return one_of_each(cls, values)


class TeacherSettings(Settings):
    """The dense model that the student follows: given, or trained first, or a given one trained further."""

    model: str | None = None
    """A folder, a hub name, or `package:NAME/SUBFOLDER`, as student.model; null: the student's pretrained model."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; null for the default branch."""
    train: TrainSettings | None = None
    """How to fine-tune it first (a dense run, kept in the store); null: it is fine-tuned already."""

    @model_validator(mode="after")
    def _something_given(self) -> TeacherSettings:
        if self.model is None and self.train is None:
            raise ValueError(
                "give model (a fine-tuned one), or train (how to fine-tune it), or both; null for no teacher"
            )
        if self.model is None and self.revision is not None:
            raise ValueError(f"revision belongs to a model, but model is null, got revision={self.revision}")
        return self
