"""Language modeling: a model learns from plain text to predict masked tokens (MLM) or each next token (CLM).

The training text is streamed from the store (`raypp.corpus`). The model's head multiplies with the whole vocabulary, so
it is computed only for the *chosen* tokens, whose output is used; for MLM they are a seventh of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raypp.corpus.blocks import BLOCKS_FORMAT, SHORTEST, TOKEN_COUNTS, Blocks, cut_texts
from raypp.corpus.examples import BlockExamples
from raypp.corpus.streamed import StreamedBlocks
from raypp.corpus.targets import NOT_PREDICTED, Ids, Masker
from raypp.data.values import text_of
from raypp.errors import FailsAgain
from raypp.kinds.kind import TaskKind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from raypp.config import Experiment
    from raypp.data.tokenization import Vocabulary
    from raypp.evaluation.predictions import Predictions
    from raypp.store import Artifact

# Encoders that AutoModelForCausalLM opens, too. Unless they are made decoders, they see the tokens that they predict.
BIDIRECTIONAL = (
    *("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta"),
    *("xlm-roberta-xl", "xmod"),
)
EVALUATION_SEED = 0
"""Seed of the masks in every evaluation, whatever the run's own seed is."""


@dataclass(frozen=True)
class LanguageModeling(TaskKind):
    """What MLM and CLM share."""

    stores_teacher_logits = (
        False  # too many: a row of the vocabulary's size per target, and other targets in each epoch
    )

    cuts_texts = True
    rows_are_examples = False
    own_settings = frozenset({"data.window_blocks", "distillation.soft_tokens"})

    def problems_with(self, tokenizer: PreTrainedTokenizerBase, field: str) -> list[str]:
        problems = []
        if self.task.masking is not None and tokenizer.mask_token_id is None:
            problems.append(
                f"{field}: the tokenizer has no mask token; allowed: a tokenizer that has one, or objective: causal"
            )
        if self.data.max_length < SHORTEST:
            problems.append(f"data.max_length: blocks have at least {SHORTEST} tokens, got {self.data.max_length}")
        return problems

    @property
    def columns(self) -> tuple[str, ...]:
        return ("text",)

    @property
    def column_settings(self) -> tuple[str, ...]:
        return ()

    def schema(self) -> pa.Schema:
        """The columns row and text; there is no label."""
        return pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])

    def texts(self, values: Sequence[object], columns: Sequence[object]) -> tuple[str | None, ...]:
        return (text_of(values[0], columns[0]),)

    def label(self, value: object, column: object, spellings: Mapping[str, int]) -> Any:
        raise AssertionError("text has no labels")

    def features_settings(self) -> dict[str, Any]:
        return {"blocks": BLOCKS_FORMAT, "max_length": self.data.max_length}

    def tokenize(self, batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
        """Blocks (`corpus.blocks.SCHEMA`); a text gives any number of them."""
        return cut_texts(batch, tokenizer, self.data.max_length)[0]

    def training_data(
        self,
        experiment: Experiment,
        micro_batches: int,
        vocabulary: Vocabulary,
        train: Artifact,
        teacher_logits: Artifact | None,
    ) -> StreamedBlocks:
        """A stream of blocks from the store."""
        counts = np.array((train.location / TOKEN_COUNTS).read_json(), np.int64)
        masker = self._masker(experiment.train.seed, counts, vocabulary)
        return StreamedBlocks(experiment, micro_batches, train, masker)

    def evaluation_data(self, table: pa.Table, vocabulary: Vocabulary) -> BlockExamples:
        """Blocks in memory. Their masks depend on neither the run's seed nor its smoothing, so that all models are
        measured on the same targets."""
        masker = self._masker(EVALUATION_SEED, np.ones(vocabulary.size, np.int64), vocabulary)
        table = table.sort_by([("row", "ascending"), ("piece", "ascending")])
        return BlockExamples(Blocks.from_table(table), masker)

    def _masker(self, seed: int, counts: Ids, vocabulary: Vocabulary) -> Masker | None:
        masking = self.task.masking
        if masking is None:
            return None
        assert vocabulary.mask_id is not None, "the plan has refused a tokenizer without a mask token"
        return Masker.build(masking, seed, counts, vocabulary.special_ids, vocabulary.mask_id)

    def head_settings(self) -> dict[str, Any]:
        return {}

    def keeps_head(self, config: Any) -> bool:
        """Any head is kept."""
        return True

    def output_order(self, config: Any, field: str) -> list[int]:
        """The order of `predicted`, which does not depend on the model."""
        return [0, 1]

    def run(self, model: Any, batch: Mapping[str, Tensor], **asked: Any) -> Any:
        """Runs the model; its head gets the chosen tokens alone, as [chosen tokens, 1, hidden size]."""
        chosen = batch["chosen"]

        def choose(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (inputs[0][chosen].unsqueeze(1),)

        handle = model.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            return super().run(model, batch, **asked)
        finally:
            handle.remove()

    def outputs(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [chosen tokens, vocabulary].

        Raises:
            FailsAgain: the model computed its head for other tokens as well.
        """
        logits: Tensor = output.logits
        if logits.shape[:2] != (int(batch["chosen"].sum()), 1):
            raise FailsAgain(
                f"the model's head cannot be computed for chosen tokens alone: it gave logits of shape "
                f"{tuple(logits.shape)} for {int(batch['chosen'].sum())} tokens"
            )
        return logits.squeeze(1)

    def hard_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        from raypp.distillation.losses import hard_cross_entropy_sum

        return hard_cross_entropy_sum(outputs, batch["labels"][batch["chosen"]])  # ignores NOT_PREDICTED

    def soft_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        from raypp.distillation.losses import soft_cross_entropy_sum

        return soft_cross_entropy_sum(outputs, batch["teacher_logits"], temperature)

    def predicted(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean negative log-likelihood of each row's targets, in nats, and their number; float32 [rows, 2]."""
        import torch
        from torch.nn import functional

        chosen, labels = batch["chosen"], batch["labels"]
        losses = functional.cross_entropy(outputs.float(), labels[chosen], reduction="none")
        sums = torch.zeros(len(labels), device=losses.device).index_add(0, chosen.nonzero()[:, 0], losses)
        counts = (labels != NOT_PREDICTED).sum(dim=1)
        return torch.stack([sums / counts.clamp(min=1), counts.float()], dim=1)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Perplexity: exp of the mean negative log-likelihood over all targets of the split.

        Raises:
            ValueError: there is no target.
            FloatingPointError: a likelihood is not finite, or the perplexity is too large for a number.
        """
        losses, counts = predictions.logits.astype(np.float64).T
        if not np.isfinite(losses).all():
            raise FloatingPointError(f"{self.task.name}: a likelihood is not finite")
        if counts.sum() == 0:
            raise ValueError(f"metrics of {self.task.name} need at least one token to predict, got none")
        mean = (losses * counts).sum() / counts.sum()
        try:
            return {"perplexity": math.exp(mean)}
        except OverflowError:
            raise FloatingPointError(f"{self.task.name}: no perplexity of a mean loss of {mean:.6g}") from None

    def table(self, predictions: Mapping[str, Predictions]) -> str:
        lines = ["split\trow\tpiece\ttargets\tnegative_log_likelihood"]
        for split, part in predictions.items():
            examples = part.features
            assert isinstance(examples, BlockExamples), "as evaluation_data made them"
            for row, piece, (loss, count) in zip(examples.rows, examples.pieces, part.logits, strict=True):
                lines.append(f"{split}\t{row}\t{piece}\t{count:.0f}\t{loss:.6g}")
        return "\n".join(lines) + "\n"

    def write(self, split: str, predictions: Predictions, folder: Path) -> list[Path]:
        path = folder / f"predictions-{split}.tsv"
        path.write_text(self.table({split: predictions}), encoding="utf-8")
        return [path]


@dataclass(frozen=True)
class MaskedLanguageModeling(LanguageModeling):
    """MLM: some tokens are masked, and the model predicts them."""

    auto_class = "AutoModelForMaskedLM"

    def misfit_of(self, config: Any) -> str | None:
        if config.model_type == "mobilebert":
            return "has a head that cannot be computed for chosen tokens alone; allowed: another family"
        return None


@dataclass(frozen=True)
class CausalLanguageModeling(LanguageModeling):
    """CLM: the model predicts each next token."""

    auto_class = "AutoModelForCausalLM"

    def misfit_of(self, config: Any) -> str | None:
        looks_back = getattr(config, "causal" if config.model_type == "xlm" else "is_decoder", False)
        if config.model_type in BIDIRECTIONAL and not looks_back:
            return "sees the tokens that follow, which it would have to predict; allowed: objective: masked"
        return None
