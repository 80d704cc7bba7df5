"""What a language model is to predict: masked tokens (MLM), or the next one everywhere (CLM).

A pure function of (seed, epoch, the block's place in the corpus, its tokens): the same whatever batch a block is in,
however wide that is padded, and after a resume. Each epoch masks anew.
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
# What a random number is for, so that no two uses share one.
_COUNT, _CHOICE, _FATE, _REPLACEMENT = range(4)

Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def causal_targets(ids: Ids, is_real: Bools) -> Ids:
    """The label of each token: the one after it, of real ones; int64 [rows, width]."""
    labels = np.full_like(ids, NOT_PREDICTED)
    labels[:, :-1] = np.where(is_real[:, 1:], ids[:, 1:], NOT_PREDICTED)
    return labels


@dataclass(frozen=True, eq=False)
class Masker:
    """Masks blocks for MLM as BERT does (Devlin et al. 2019, section 3.1), rare tokens more often (DistilBERT's
    scripts; the smoothing of word2vec's frequencies, Mikolov et al. 2013)."""

    settings: MaskingSettings
    seed: int
    weights: npt.NDArray[np.float64]
    """[vocabulary]: relative chance of each token to be predicted; 0 for those that never are."""
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
        """A masker that knows a corpus.

        Args:
            counts: of each token in it, [vocabulary].
            special_ids: tokens that are never predicted nor put in another's place.
        """
        weights = np.maximum(counts, 1).astype(np.float64) ** -settings.smoothing
        weights[list(special_ids)] = 0.0
        return cls(settings, seed, weights, mask_id)

    def target_counts(self, ids: Ids, rows: Ids, pieces: Ids, is_real: Bools, epoch: int) -> Ids:
        """How many tokens of each block are predicted, [rows]: the settings' proportion of its tokens, rounded up or
        down at random so that it holds in the mean; at least one, and no more than may be."""
        wanted = self.settings.proportion * is_real.sum(axis=1)
        counts = np.floor(wanted + uniform(self.seed, epoch, rows, pieces, _COUNT)).astype(np.int64)
        possible = (self._weights_of(ids, is_real) > 0).sum(axis=1)
        targets: Ids = np.minimum(np.maximum(counts, 1), possible)
        return targets

    def __call__(self, ids: Ids, rows: Ids, pieces: Ids, is_real: Bools, epoch: int) -> tuple[Ids, Ids]:
        """Masked tokens and labels.

        Args:
            ids: [rows, width].
            rows, pieces: [rows]: the blocks' places in the corpus.
            is_real: [rows, width], False at padding.

        Returns:
            The tokens that the model sees, and the label of each (the token that stood there, or NOT_PREDICTED); both
            int64 [rows, width].
        """
        places = (self.seed, epoch, rows[:, None], pieces[:, None], np.arange(ids.shape[1]))
        # Of n tokens the k with the smallest -log(u) / weight are k draws without replacement, each token as likely as
        # its weight says (Efraimidis and Spirakis 2006).
        with np.errstate(divide="ignore"):
            keys = -np.log(uniform(*places, _CHOICE)) / self._weights_of(ids, is_real)
        ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
        chosen = ranks < self.target_counts(ids, rows, pieces, is_real, epoch)[:, None]
        labels = np.where(chosen, ids, NOT_PREDICTED)

        fate = uniform(*places, _FATE)
        masked = np.where(chosen & (fate < self.settings.mask_fraction), self.mask_id, ids)
        replaced = chosen & (fate >= 1.0 - self.settings.random_fraction)
        replacements = self._ordinary[(uniform(*places, _REPLACEMENT) * len(self._ordinary)).astype(np.int64)]
        return np.where(replaced, replacements, masked), labels

    @cached_property  # of every batch asked for, and as long as the vocabulary
    def _ordinary(self) -> Ids:
        """The tokens that may be put in another's place: all that are not special."""
        return np.flatnonzero(self.weights)

    def _weights_of(self, ids: Ids, is_real: Bools) -> npt.NDArray[Any]:
        return np.where(is_real, self.weights[ids], 0.0)
