"""Settings of the student, the teacher, and one training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import DecayRate, LayerNumber, Settings, one_of_each


class StudentSettings(Settings):
    """The pretrained encoder that is fine-tuned and pruned."""

    model: str
    """A folder, a hub name, or `package:NAME/SUBFOLDER` of an installed Python package."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; null: the default branch. The run keeps the commit that this is when the
    command starts."""
    layers: Annotated[tuple[LayerNumber, ...], Strict(False), Field(min_length=1)] | None = None
    """Initialise a smaller student from these layers of the model, numbered from 0; its embeddings and other parts are
    kept. null: all layers."""
    config: dict[str, Any] | str | None = None
    """Train a new, randomly initialised model; `model` then only gives the tokenizer and the base configuration. Either
    changes to that configuration ({num_hidden_layers: 3}) or, with a model_type, a complete configuration; or a JSON
    file that contains one of these. null: the pretrained model."""
    start: Literal["pretrained", "teacher"] = "pretrained"
    """Which initial weights the student gets (not when it starts). pretrained: the pretrained model's with a new head;
    teacher: the fine-tuned teacher's with its head, which requires a teacher of the same shape as `model`."""

    @model_validator(mode="after")
    def _one_beginning(self) -> StudentSettings:
        if self.layers is not None and self.config is not None:
            raise ValueError("give layers or config, not both: a new model has no pretrained layers to choose from")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers: numbers must be unique and ascending, got {list(self.layers)}")
        if self.start == "teacher" and self.config is not None:
            raise ValueError("give start: teacher or config, not both: a new model is initialised at random")
        return self


class TrainSettings(Settings):
    """One training: its length, its batches and its optimizer."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training split; may be fractional (3 if neither this nor max_steps is given)."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Exact number of optimizer steps, instead of epochs."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """The global batch: examples of one optimizer step over all workers (32 if neither this nor batch_tokens is
    given)."""
    batch_tokens: Annotated[int, Field(ge=8)] | None = None
    """Tokens of a global batch, padding to its longest example included, instead of batch_size. Long examples then come
    in smaller batches. Not allowed for plain text, which comes in blocks of similar size."""
    micro_batches: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of fixed shares of a global batch. Share m is computed by worker m mod the number of workers, with its own
    dropout seed, so a run gives the same result on any number of workers as long as this number is the same. It must be
    at least the number of workers. auto: the largest number of workers that cluster.workers allows (at least 1), so
    another number of workers is another run."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-5
    """Peak learning rate of the weights."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of all steps in which the learning rate rises (0.1 if neither this nor warmup_steps is given)."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Number of steps in which the learning rate rises, instead of warmup_fraction. Afterwards it falls linearly to
    0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay. It is never applied to biases, LayerNorm or scores."""
    adam_betas: Annotated[tuple[DecayRate, DecayRate], Strict(False)] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Maximum norm of the gradients of weights and scores together, to which they are clipped; null: no clipping. The
    gradients that fisher computes its scores from are neither counted nor clipped."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability of every dropout of the model; null: the model's own configuration."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of forward and backward passes (torch's autocast; float16 with loss scaling). Weights, scores and
    optimizer state stay in float32."""
    freeze_embeddings: bool | None = None
    """Do not train the embeddings (of tokens, positions and token types, with their LayerNorm). null: true when pruning
    (as in the paper), false in a dense run or if the embeddings are randomly initialised (student.config)."""
    freeze_position_embeddings: bool = False
    """Do not train the position embeddings."""
    freeze_token_type_embeddings: bool = False
    """Do not train the token type embeddings."""
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of training metrics in metrics.jsonl. Each line has the means since the line before."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the training: initialisation of the head, initial scores, order of the batches, dropout and L0 noise."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_two_ways(cls, values: Any) -> Any:
        return one_of_each(cls, values)


class TeacherSettings(Settings):
    """The dense model that the student follows. `model` alone is a fine-tuned teacher; with `train`, raypp fine-tunes
    it first."""

    model: str | None = None
    """A folder, a hub name, or `package:NAME/SUBFOLDER`, as in student.model; null: the student's pretrained model."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; null: the default branch. The run keeps the commit that this is when the
    command starts."""
    train: TrainSettings | None = None
    """How to fine-tune the teacher before the student: in a dense run, which is kept in the store. null: the model is
    fine-tuned already."""

    @model_validator(mode="after")
    def _something_given(self) -> TeacherSettings:
        if self.model is None and self.train is None:
            raise ValueError(
                "give model (a fine-tuned model), or train (how to fine-tune one), or both; for no teacher, set "
                "teacher to null"
            )
        if self.model is None and self.revision is not None:
            raise ValueError(f"revision is for a model, but model is null, got revision={self.revision}")
        return self
