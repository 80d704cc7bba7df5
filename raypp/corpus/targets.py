"""The targets of a language model: masked tokens (MLM), or each next token (CLM).

The targets of a block are a pure function of (seed, epoch, position of the block in the corpus, its tokens). They do
not depend on the batch that the block is in or on its padding, and they are the same after a resume. Each epoch has
other masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raypp.config import MaskingSettings
from raypp.corpus.counter_random import uniform

NOT_PREDICTED = -100
"""Label of a token that is not predicted."""
# Purposes of random numbers. Each has its own.
_COUNT, _CHOICE, _FATE, _REPLACEMENT = range(4)

Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def causal_targets(ids: Ids, is_real: Bools) -> Ids:
    """The labels for causal language modeling: of each token the next real one, int64 [rows, width].

    Args:
        ids: [rows, width].
        is_real: [rows, width], False at padding.
    """
    labels = np.full_like(ids, NOT_PREDICTED)
    labels[:, :-1] = np.where(is_real[:, 1:], ids[:, 1:], NOT_PREDICTED)
    return labels


@dataclass(frozen=True, eq=False)
class Masker:
    """Masks blocks for MLM as BERT does (Devlin et al. 2019, section 3.1).

    It can choose rare tokens more often, as DistilBERT's scripts do (the smoothing of word2vec's frequencies, Mikolov
    et al. 2013).
    """

    settings: MaskingSettings
    seed: int
    weights: npt.NDArray[np.float64]
    """[vocabulary]: relative chance of each token to be predicted; 0 for special tokens, which never are."""
    mask_id: int

    @classmethod
    def build(
        cls,
        settings: MaskingSettings,
        seed: int,
        counts: npt.NDArray[np.int64],
        special_ids: Sequence[int],
        mask_id: int,
    ) -> Masker:
        """A masker for a corpus.

        Args:
            counts: number of occurrences of each token in the corpus, [vocabulary].
            special_ids: tokens that are never predicted and never replace another token.
        """
        weights = np.maximum(counts, 1).astype(np.float64) ** -settings.smoothing
        weights[list(special_ids)] = 0.0
        return cls(settings, seed, weights, mask_id)

    def target_counts(self, ids: Ids, rows: Ids, pieces: Ids, is_real: Bools, epoch: int) -> Ids:
        """Number of tokens to predict in each block, [rows].

        It is the settings' proportion of the block's tokens, rounded up or down at random so that the proportion holds
        on average. It is at least 1, but at most the number of tokens that may be predicted. Arguments as in
        `__call__`.
        """
        wanted = self.settings.proportion * is_real.sum(axis=1)
        counts = np.floor(wanted + uniform(self.seed, epoch, rows, pieces, _COUNT)).astype(np.int64)
        possible = (self._weights_of(ids, is_real) > 0).sum(axis=1)
        targets: Ids = np.minimum(np.maximum(counts, 1), possible)
        return targets

    def __call__(self, ids: Ids, rows: Ids, pieces: Ids, is_real: Bools, epoch: int) -> tuple[Ids, Ids]:
        """Masks blocks.

        Args:
            ids: [rows, width].
            rows: [rows]: position of each block's text in the source.
            pieces: [rows]: number of each block in its text.
            is_real: [rows, width], False at padding.

        Returns:
            The tokens that the model sees, and the label of each (the original token, or NOT_PREDICTED); both int64
            [rows, width].
        """
        coordinates = (self.seed, epoch, rows[:, None], pieces[:, None], np.arange(ids.shape[1]))
        # The k tokens with the smallest -log(u) / weight are a weighted sample without replacement (Efraimidis and
        # Spirakis 2006).
        with np.errstate(divide="ignore"):
            keys = -np.log(uniform(*coordinates, _CHOICE)) / self._weights_of(ids, is_real)
        ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
        chosen = ranks < self.target_counts(ids, rows, pieces, is_real, epoch)[:, None]
        labels = np.where(chosen, ids, NOT_PREDICTED)

        fate = uniform(*coordinates, _FATE)
        masked = np.where(chosen & (fate < self.settings.mask_fraction), self.mask_id, ids)
        replaced = chosen & (fate >= 1.0 - self.settings.random_fraction)
        replacements = self._ordinary[(uniform(*coordinates, _REPLACEMENT) * len(self._ordinary)).astype(np.int64)]
        return np.where(replaced, replacements, masked), labels

    @cached_property  # every batch needs it, and it is as long as the vocabulary
    def _ordinary(self) -> Ids:
        """The tokens that may replace others: all that are not special."""
        return np.flatnonzero(self.weights)

    def _weights_of(self, ids: Ids, is_real: Bools) -> npt.NDArray[Any]:
        return np.where(is_real, self.weights[ids], 0.0)
