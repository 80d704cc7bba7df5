"""Blocks together with the tokens to predict: the examples of language modeling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypp.corpus.blocks import Blocks
from raypp.corpus.targets import NOT_PREDICTED, Ids, Masker, causal_targets
from raypp.data.examples import Counts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class BlockExamples:
    """Blocks in memory, with the targets of one epoch."""

    blocks: Blocks
    masker: Masker | None
    """Chooses the targets; None for causal language modeling, which predicts each next token."""
    epoch: int = 0
    all_tokens: bool = False
    """Whether the model's output is needed at all real tokens, not only at the targets."""

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """int64 [n]: position of each block's text in the source. Several blocks may have the same text."""
        return self.blocks.rows

    @property
    def pieces(self) -> npt.NDArray[np.int64]:
        """int64 [n]: number of each block in its text."""
        return self.blocks.pieces

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """bool [n], all True: a text is its own label."""
        return np.ones(len(self.blocks), bool)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each block, int64 [n]."""
        return self.blocks.lengths

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """The same as `lengths`."""
        return self.lengths

    def loss_counts(self, indices: npt.NDArray[np.int64]) -> Counts:
        """Targets are the tokens to predict; outputs are the tokens at which a model's output is computed."""
        if self.masker is None:
            targets = int((self.lengths[indices] - 1).sum())
        else:
            ids, is_real = self.blocks.padded(indices)
            rows, pieces = self.rows[indices], self.pieces[indices]
            targets = int(self.masker.target_counts(ids, rows, pieces, is_real, self.epoch).sum())
        outputs = int(self.lengths[indices].sum()) if self.all_tokens else targets
        return Counts(len(indices), targets, outputs)

    def output_indices(self, indices: npt.NDArray[np.int64], per_token: bool) -> npt.NDArray[np.int64]:
        """Each block has one prediction, so the same indices."""
        assert not per_token, "a block is predicted as a whole"
        return indices

    def collate(
        self, indices: npt.NDArray[np.int64], pad_id: int, *, max_padded: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The blocks at `indices` (at least one) as one padded batch.

        Args:
            pad_id: the padding token.
            max_padded: maximum width, the number of the model's positions; None for no limit.

        Returns:
            input_ids, attention_mask and labels (NOT_PREDICTED where there is no target), int64 [rows, width]; chosen,
            bool [rows, width], the tokens at which the model's output is needed.
        """
        import torch

        ids, is_real = self.blocks.padded(indices)
        if max_padded is not None:
            ids, is_real = ids[:, :max_padded], is_real[:, :max_padded]
        seen, labels = self._targets(ids, indices, is_real)
        batch: dict[str, Any] = {
            "input_ids": np.where(is_real, seen, pad_id),
            "attention_mask": is_real.astype(np.int64),
            "labels": labels,
            "chosen": is_real if self.all_tokens else labels != NOT_PREDICTED,
        }
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _targets(self, ids: Ids, indices: npt.NDArray[np.int64], is_real: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
        if self.masker is None:
            return ids, causal_targets(ids, is_real)
        return self.masker(ids, self.rows[indices], self.pieces[indices], is_real, self.epoch)
