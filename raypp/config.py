"""Every setting of an experiment, once: its type, range, default and meaning.

The models are frozen and strict: an unknown key, a string where a number belongs or a value out of range is refused.
What one section says about another (distillation without a teacher) is checked in `plan_checks.py`. Reading YAML and
turning pydantic's findings into a `ConfigError` is `load_config.py`'s work.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag, model_validator

Density = Annotated[float, Field(gt=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Names = Annotated[tuple[str, ...], Strict(False)]
Quotes = Literal["csv", "plain"]
Kind = Literal["classification", "regression", "multiple_choice", "question_answering"]
LayerNumber = Annotated[int, Field(ge=0)]

# The original scripts' spellings, so that their users' habits work.
METHOD_ALIASES = {"topK": "topk", "sigmoied_threshold": "sigmoid_threshold", "TopK": "topk", "L0": "l0"}


def method_name(spelling: str) -> str:
    """A pruning method's name, from any spelling of the original scripts."""
    return METHOD_ALIASES.get(spelling, spelling)


# Where the search for lambda begins if nothing is said: what the small encoders' soft movement pruning was run with.
FIRST_LAMBDA = 100.0


class Settings(BaseModel):
    """Base of every section: frozen, strict, no unknown keys; docstrings under fields are their descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# Two ways to say one thing, and the value of the first where neither is given.
ALTERNATIVES: dict[tuple[str, str], float] = {
    ("epochs", "max_steps"): 3.0,
    ("batch_size", "batch_tokens"): 32,
    ("warmup_fraction", "warmup_steps"): 0.1,
    ("every_epochs", "every_steps"): 1.0,
}


def _one_of_each(model: type[BaseModel], values: Any) -> Any:
    """The values, with the default of every pair of alternatives of which none is given; ValueError where both are."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    for (first, second), default in ALTERNATIVES.items():
        if first not in model.model_fields:
            continue
        given = [name for name in (first, second) if values.get(name) is not None]
        if len(given) == 2:
            raise ValueError(
                f"{first} and {second} exclude each other, got {first}={values[first]} and {second}={values[second]}"
            )
        if not given:
            values[first] = default
    return values


# --- task and data ---------------------------------------------------------------------------------------------------


class OwnTask(Settings):
    """A task of the user's own, for `data.source.kind: files`."""

    name: Name
    """What the task is called in folders and tables."""
    kind: Kind = "classification"
    """What is predicted: one of several classes, a real number, the right one of several endings, or words of a
    context."""
    pair: bool = False
    """Whether each example of a classification or regression is a pair of sentences."""
    labels: Names = ()
    """Label names of a classification, two at least, in the order of the model's outputs; empty for the other kinds."""
    unanswerable: bool = False
    """Whether some questions have no answer in their context; of question answering alone."""

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> OwnTask:
        if self.kind == "classification" and len(self.labels) < 2:
            raise ValueError(f"labels: a classification task needs at least 2 label names, got {list(self.labels)}")
        if self.kind != "classification" and self.labels:
            raise ValueError(f"labels: a {self.kind} task has no label names; leave them out")
        if self.pair and self.kind not in ("classification", "regression"):
            raise ValueError(f"pair: a {self.kind} task has no pairs of sentences; leave it out")
        if self.unanswerable and self.kind != "question_answering":
            raise ValueError(f"unanswerable: a {self.kind} task has no questions; leave it out")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: every label name may stand once, got {list(self.labels)}")
        return self


class MaskingSettings(Settings):
    """Which tokens a masked language model is to predict, and what stands in their place; anew in each epoch."""

    proportion: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Part of a block's tokens that is predicted."""
    mask_fraction: Fraction = 0.8
    """Part of those that is replaced by the mask token."""
    keep_fraction: Fraction = 0.1
    """Part that is left as it is."""
    random_fraction: Fraction = 0.1
    """Part that is replaced by any other token; the three are 1 together."""
    smoothing: Annotated[float, Field(ge=0)] = 0.7
    """Rare tokens are predicted more often: a token's chance is its count in the corpus to the power of minus this. 0:
    all alike."""

    @model_validator(mode="after")
    def _fractions_are_all(self) -> MaskingSettings:
        total = self.mask_fraction + self.keep_fraction + self.random_fraction
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mask_fraction, keep_fraction and random_fraction must be 1 together, got {total:g}")
        return self


class LanguageModelingTask(Settings):
    """Language modelling on plain text, for `data.source.kind: text`, `hub_text` or `glue_text`: what DistilBERT is
    made by."""

    name: Name
    """What the task is called in folders and tables."""
    kind: Literal["language_modeling"]
    """Text without labels."""
    objective: Literal["masked", "causal"] = "masked"
    """masked: some tokens are to be found again (MLM); causal: each next one (CLM)."""
    masking: MaskingSettings | None = None
    """Which tokens are masked; null: the defaults. Not with `objective: causal`."""

    @model_validator(mode="after")
    def _masking_is_meant(self) -> LanguageModelingTask:
        if self.objective == "causal" and self.masking is not None:
            raise ValueError("masking: nothing is masked with objective: causal; leave it out")
        return self


class OfficialSource(Settings):
    """The files of a task as they are published (GLUE: `train.tsv`, `dev.tsv`, …; SWAG: `train.csv`, …)."""

    kind: Literal["official"]
    directory: str
    """Folder that holds the files, by their published names; a local path or a URI (s3://, gs://)."""


class HubSource(Settings):
    """A data set of the Hugging Face hub, read with `datasets.load_dataset`."""

    kind: Literal["hub"]
    repository: str | None = None
    """Name of the data set repository; null: where the task is published (`nyu-mll/glue`, `allenai/swag`, …)."""
    revision: str | None = None
    """Branch, tag or commit; null for the default branch."""


class Columns(Settings):
    """Which column of a user's file holds what: sentence1 and sentence2 for classification and regression; sent1, sent2
    and endings for multiple choice; id, question, context and answers for question answering."""

    sentence1: str = "sentence1"
    """The sentence, or the first of a pair."""
    sentence2: str = "sentence2"
    """The second sentence of a pair."""
    sent1: str = "sent1"
    """The context of a multiple choice."""
    sent2: str = "sent2"
    """What every ending of a multiple choice begins with."""
    endings: Annotated[Names, Field(min_length=2)] = ("ending0", "ending1", "ending2", "ending3")
    """The choices, in the order of their numbers."""
    id: str = "id"
    """What a question is known by in the files of predictions."""
    question: str = "question"
    """The question."""
    context: str = "context"
    """The text in which its answer stands."""
    answers: str = "answers"
    """The right answers, texts with their places in the context (`answer_start`, in characters), as in SQuAD."""
    label: str = "label"
    """Label name, or its number from 0 where no name is a number itself (classification), value (regression) or number
    of the right ending (multiple choice)."""


class FilesSource(Settings):
    """The user's own Parquet, CSV, TSV or JSON-lines files."""

    kind: Literal["files"]
    train: str
    """Training file, a local path or a URI; the ending names the format (.parquet, .csv, .tsv, .jsonl)."""
    dev: str
    """File that is evaluated on."""
    test: str | None = None
    """File to predict; it needs no labels."""
    columns: Columns = Columns()
    """Which column holds what."""
    quotes: Quotes = "csv"
    """Double quotes in CSV and TSV. csv: a field in quotes may hold separators and line ends (RFC 4180); plain: they
    are characters like others, as in GLUE's own files."""


class SyntheticSource(Settings):
    """Examples written by raypp's own seeded grammar: offline, free, and the same everywhere."""

    kind: Literal["synthetic"]
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the grammar."""
    train_rows: Annotated[int, Field(ge=1)] = 8000
    """Rows of the training split."""
    dev_rows: Annotated[int, Field(ge=1)] = 1000
    """Rows of the dev split (and of the test split)."""


class Texts(Settings):
    """What the sources of plain text share."""

    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Part of the texts that is kept for evaluation, where there is no split for it; chosen by position alone."""


class TextSource(Texts):
    """Plain text in the user's own files: a text a line, or a column."""

    kind: Literal["text"]
    files: Annotated[Names, Field(min_length=1)]
    """Files of the training split, local paths or URIs, one after the other; the ending names the format (.txt,
    .parquet, .csv, .tsv, .jsonl)."""
    dev_files: Names = ()
    """Files that are evaluated on; none: a part of the others is held out."""
    column: str = "text"
    """Column of the text in a table."""
    quotes: Quotes = "csv"
    """Double quotes in CSV and TSV. csv: a field in quotes may hold separators and line ends (RFC 4180); plain: they
    are characters like others, as in GLUE's own files."""


class HubTextSource(Texts):
    """Plain text of a data set of the Hugging Face hub."""

    kind: Literal["hub_text"]
    repository: str
    """Name of the data set repository."""
    configuration: str | None = None
    """Which of its configurations, where it has several."""
    revision: str | None = None
    """Branch, tag or commit; null for the default branch."""
    split: str = "train"
    """Split to train on."""
    dev_split: str | None = None
    """Split to evaluate on; null: a part of the other is held out."""
    column: str = "text"
    """Column of the text."""


class GlueTextSource(Texts):
    """Every sentence of the training splits of GLUE tasks, without labels."""

    kind: Literal["glue_text"]
    directory: str
    """Folder that holds a folder of official files for each task, by its published name (SST-2, MRPC)."""
    tasks: Annotated[Names, Field(min_length=1)]
    """Names of the tasks."""


Source = Annotated[
    OfficialSource | HubSource | FilesSource | SyntheticSource | TextSource | HubTextSource | GlueTextSource,
    Field(discriminator="kind"),
]


class DataSettings(Settings):
    """Where the examples come from and how much of each is read."""

    source: Source | None = None
    """Labelled examples: official, hub, files or synthetic. Plain text, for language modelling: text, hub_text or
    glue_text. null: raypp's own grammar for a synthetic task, the hub for any other of the table. A task of one's own
    needs files."""
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens kept of an example (of each choice, of each window), special tokens included."""
    stride: Annotated[int, Field(ge=1)] = 128
    """Question answering: tokens from the start of one window of a long context to the start of the next."""
    max_train_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many training rows (of plain text, the first texts); null for all."""
    window_blocks: Annotated[int, Field(ge=1)] = 65_536
    """Of plain text: sequences in memory at a time, among which those of a batch are chosen."""


# --- models ----------------------------------------------------------------------------------------------------------


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
        return _one_of_each(cls, values)


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


# --- pruning ---------------------------------------------------------------------------------------------------------


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


class DensitySchedule(Settings):
    """From one density to another, for the methods that keep so many weights."""

    scope: Literal["local", "global"] = "local"
    """local: the density holds in each matrix; global: over all matrices together."""
    initial_density: Density = 1.0
    """Density until the initial warmup ends."""
    final_density: Density = 0.15
    """Density from the beginning of the final warmup on."""

    @model_validator(mode="after")
    def _goes_down(self) -> DensitySchedule:
        if self.final_density > self.initial_density:
            raise ValueError(
                f"final_density must not exceed initial_density, got {self.final_density} > {self.initial_density}"
            )
        return self

    @property
    def requested_density(self) -> float | None:
        return self.final_density


class TopKPruning(DensitySchedule, ScoredPruning):
    """Movement pruning: keep the weights with the highest learned scores (Sanh et al. 2020, section 3)."""

    method: Literal["topk"]


class MagnitudePruning(DensitySchedule, PruningBase):
    """Keep the weights of the largest magnitude (Zhu and Gupta 2017)."""

    method: Literal["magnitude"]


class FisherPruning(DensitySchedule, PruningBase):
    """Keep the weights that the loss would miss most, by the diagonal of the empirical Fisher information.

    A weight's score is a running mean of n (w g)^2, w the weight and g the gradient for it of the loss, a mean over the
    n rows of a global batch: twice what the loss rises by when the weight goes to 0, to second order and without the
    other weights (LeCun et al. 1990, "Optimal Brain Damage"; Kurtic et al. 2022 with blocks of one weight). Pruned
    weights have gradients as well, and may come back.

    In a loop of your own, `raypp.optim.build_optimizer` makes the optimizer that keeps these means; where batches
    differ in size, as the last of an epoch does, its step is told of it: `optimizer.step(rows=n)`.
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


class FloorPruning(TargetedPruning):
    """What the two threshold methods share."""

    initial_threshold: float = 0.0
    """Threshold until the initial warmup ends; with a target_density, which begins at a density of 1, there is none."""
    density_floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    """At least this part of each matrix is kept, whatever the threshold says."""

    @model_validator(mode="after")
    def _target_fits(self) -> FloorPruning:
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


class SigmoidThresholdPruning(FloorPruning):
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


class ThresholdPruning(FloorPruning):
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


# --- the run ---------------------------------------------------------------------------------------------------------


class AnswerSettings(Settings):
    """Question answering: how an answer is read from a model's logits, the student's and that of a teacher that is
    trained first (another one for other settings)."""

    n_best: Annotated[int, Field(ge=1)] = 20
    """Candidates of each window, and of each question in nbest_predictions.json."""
    max_tokens: Annotated[int, Field(ge=1)] = 30
    """Tokens of an answer, at most."""
    null_threshold: float = 0.0
    """A question of a data set that has unanswerable ones has no answer where the score of "none" is above that of the
    best answer by more than this."""


class EvaluationSettings(Settings):
    """When to evaluate on dev and which checkpoint to deliver."""

    every_epochs: Annotated[float, Field(gt=0)] | None = None
    """Epochs between evaluations, in parts of one if need be (1 where neither this nor every_steps is given). The last
    step is always evaluated."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between evaluations; instead of every_epochs."""
    select: Literal["last", "best"] = "last"
    """Deliver the last model, or the best by the task's first metric on its first dev split, among the evaluations at
    the final density. Not best with sigmoid_threshold, threshold or l0 without a target_density: their density falls
    until the last step."""
    answers: AnswerSettings = AnswerSettings()
    """Question answering: how answers are read."""

    @model_validator(mode="before")
    @classmethod
    def _one_rhythm(cls, values: Any) -> Any:
        return _one_of_each(cls, values)


class ClusterSettings(Settings):
    """Where it runs and where it keeps things. None of this changes a run's result, except that `train.micro_batches:
    auto` follows workers."""

    workers: Annotated[int, Field(ge=0)] | Annotated[tuple[int, int], Strict(False)] = 1
    """Train workers; 0: in this process without Ray Train; [min, max]: as many as the nodes have room
    for, which come and go; in a sweep those of each trial, within its share of the cluster."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPUs of each worker; auto: the cluster's CPUs shared evenly, but 1 with gpus_per_worker and 1 in a sweep. With
    autoscaling a number must be given, unless there are GPUs or it is a sweep."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPU of each worker: 1, or 0 for the CPU; or a part of one, which several runs and trials of one worker share."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """How workers are laid over nodes, as Ray's placement groups: pack, on few; spread, on many; strict_pack, on one;
    strict_spread, on one each."""
    grow_after_seconds: Annotated[float, Field(ge=0)] = 60
    """With workers that come and go: seconds that they train, at least, before they start again as more. It takes about
    ten, and nodes often come one after the other."""
    autoscaling: bool = False
    """Whether the cluster starts nodes for work that waits for them (`ray up`, KubeRay; Ray does not tell). What is not
    there is then waited for, and not refused, as what others use is always: Train workers half an hour at most, or as
    long as other trials of the sweep train; tasks of Ray Data and trials of one worker as long as it takes."""
    dashboard: bool = False
    """Whether Ray's dashboard, on 127.0.0.1 alone, is there as long as the command. For the Ray that a command starts:
    the cluster of `RAY_ADDRESS` has its own, or none."""
    storage: str = "runs"
    """Folder of all runs; a local path or a URI (s3://, gs://)."""
    store: str | None = None
    """Folder of what runs share (features, teachers, teacher logits), by content; null: the folder `store` in
    storage."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, beside the one at every evaluation; null: those alone."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints that are kept for resuming; the one of the best evaluation at the final density is kept,
    too."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Failures of workers that a run, or a trial of a sweep, outlives; one more ends it. A trial whose workers come and
    go is then tried once more from the start of that count. Without workers (0) there is nobody to try again but the
    same command."""

    @property
    def min_workers(self) -> int:
        """The fewest workers it goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers the experiment asks for."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether it goes on with fewer workers, and with more again."""
        return self.min_workers < self.max_workers

    @model_validator(mode="after")
    def _range_goes_up(self) -> ClusterSettings:
        if isinstance(self.workers, tuple) and not 1 <= self.workers[0] <= self.workers[1]:
            raise ValueError(f"workers: a range is [min, max] with 1 <= min <= max, got {list(self.workers)}")
        if self.is_elastic and self.placement not in ("pack", "spread"):
            raise ValueError(
                f"placement: workers that come and go ([min, max]) are laid as there is room, got {self.placement}; "
                "allowed: pack, spread"
            )
        if self.gpus_per_worker > 1:
            raise ValueError(
                f"gpus_per_worker: a worker uses at most 1 GPU, got {self.gpus_per_worker}; ask for more workers"
            )
        return self


class TrackingSettings(Settings):
    """Where metrics are recorded besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Whether Weights & Biases records the run. auto: online with an API key, offline without, unless `WANDB_MODE` says
    otherwise; online: whatever that says, and a missing key is warned of; offline: into the run's folder, for `wandb
    sync`; off: not at all."""
    project: str = "raypp"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null for the default."""
    statistics_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between two records of every parameter's and gradient's mean, standard deviation, minimum and maximum, in
    metrics.jsonl and W&B (`parameters/…`, `gradients/…`: eight numbers a parameter), and of their histograms in W&B.
    null: none."""
    figures: Literal["auto", "all", "main"] = "auto"
    """Which figures are drawn at a run's end, for its folder and W&B. main: schedule, evaluations, loss and density by
    layer; all: those of heads, scores, weights and masks, too, which take seconds. What they are drawn from is always
    kept: `raypp report` and `raypp.draw` have all of them. auto: all, but main in a sweep's trials, where seconds add
    up."""


class Axis(Settings):
    """The values that a sweep tries for one field: a list, or a range to draw from. A mapping is a whole section: what
    the experiment says there is not kept beside it."""

    choice: Annotated[tuple[Any, ...], Strict(False), Field(min_length=1)] | None = None
    """Values; a grid search takes each of them, the others draw one of them at a time."""
    grid: Annotated[tuple[Any, ...], Strict(False), Field(min_length=1)] | None = None
    """Values that every search takes in full: whatever it draws for the other axes is tried with each of them."""
    uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    """[low, high]: any number between."""
    loguniform: Annotated[tuple[float, float], Strict(False)] | None = None
    """[low, high], both above 0: any number between, each order of magnitude as likely."""
    quniform: Annotated[tuple[float, float, float], Strict(False)] | None = None
    """[low, high, step]: a multiple of the step between, which both ends are."""
    randint: Annotated[tuple[int, int], Strict(False)] | None = None
    """[low, high]: an integer between, both included."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Field paths and the value (or list of values) that each must have for this axis to matter: `{pruning.method:
    topk}`. Where it does not, points that differ in it alone are one."""

    @property
    def kind(self) -> str:
        """The one way in which its values are given."""
        return next(name for name in AXIS_KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Its values, where they are listed; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @model_validator(mode="after")
    def _one_way_that_makes_sense(self) -> Axis:
        given = [name for name in AXIS_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(AXIS_KINDS)}, got {', '.join(given) or 'none'}")
        if self.values is None:
            low, high, *step = getattr(self, self.kind)
            if not low < high or (self.kind == "loguniform" and low <= 0) or (step and step[0] <= 0):
                raise ValueError(f"{self.kind}: low must be below high, and both fit it, got {[low, high, *step]}")
            if step and any(abs(end / step[0] - round(end / step[0])) > 1e-9 for end in (low, high)):
                raise ValueError(f"quniform: low and high must be multiples of the step, got {[low, high, *step]}")
        return self


AXIS_KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")


class StoppingSettings(Settings):
    """Asynchronous successive halving (Li et al. 2020, ASHA) inside each stratum: trials of one requested density, or
    of one method, threshold and lambda where these decide it. The best of a stratum is never stopped."""

    grace_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Part of its steps that every trial has: the first rung. A trial's rung counts at its first evaluation from there
    on; the next rungs are at this times reduction_factor, its square, … of the steps."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2.0
    """At each rung the best 1/reduction_factor of those of the stratum that have reached it go on."""


class SweepSettings(Settings):
    """Many trials of one experiment, each a run of its own, and the front of the best of them."""

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """What is tried, by field path, such as `pruning.final_density`. An axis may also be a whole section, such as
    `pruning`, beside axes of its fields."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination of the listed values; random: so many points drawn; optuna: drawn by Optuna's
    multi-objective TPE, which learns from the finished trials where the metric is high and the density low. Ranges
    are for random and optuna; of task, data, student and teacher optuna takes values given as grid alone."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Points that random and optuna draw, each for every value of the axes given as grid; a grid has as many as it
    has."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Runs of each point, with training seeds one apart."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of what random and optuna draw."""
    stopping: StoppingSettings | None = None
    """When to stop a trial that others of its density are ahead of; null: every trial runs to its end. Seeds of a point
    compete, too: its mean is over those that finished. Densities, thresholds and lambdas must be values that several
    trials can have, so no uniform or loguniform range."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; null: as many as the cluster has room for, with the fewest workers each. With
    cluster.autoscaling it must be given."""

    @model_validator(mode="after")
    def _points_are_countable(self) -> SweepSettings:
        ranges = [name for name, axis in self.space.items() if axis.values is None]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"a grid takes listed values only, but {', '.join(ranges)} is a range; use search: random or optuna"
            )
        if self.search == "grid" and self.trials is not None:
            raise ValueError(f"trials belongs to search: random and optuna, got {self.trials} with a grid")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search: {self.search} needs trials, the number of points")
        if self.search == "optuna" and all(axis.grid is not None for axis in self.space.values()):
            raise ValueError("search: optuna has nothing to draw, every axis is given as grid; use search: grid")
        return self


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
