"""Masking: its proportions, its smoothing against the closed form, and no effect of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from raypp.config import MaskingSettings
from raypp.corpus.counter_random import uniform
from raypp.corpus.targets import NOT_PREDICTED, Masker, causal_targets

VOCABULARY, MASK = 50, 3
SPECIAL = [0, 1, 2, MASK]


def masker(counts: np.ndarray | None = None, **settings: Any) -> Masker:
    counts = np.arange(VOCABULARY) * 7 if counts is None else counts
    return Masker.build(MaskingSettings(**settings), 42, counts, SPECIAL, MASK)


def blocks(rows: int, width: int = 40, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Tokens, rows, pieces and which are real: between [1] and [2], of all lengths from 12."""
    chance = np.random.default_rng(seed)
    ids = chance.integers(4, VOCABULARY, (rows, width))
    lengths = chance.integers(12, width + 1, rows)
    is_real = np.arange(width) < lengths[:, None]
    ids[:, 0], ids[np.arange(rows), lengths - 1] = 1, 2
    return np.where(is_real, ids, 0), np.arange(rows), np.zeros(rows, np.int64), is_real


def test_random_numbers_are_uniform_and_independent() -> None:
    numbers = uniform(7, np.arange(300)[:, None], np.arange(400))
    assert numbers.shape == (300, 400)
    assert (numbers.min() > 0) & (numbers.max() < 1)
    assert chisquare(np.histogram(numbers, 100, (0, 1))[0]).pvalue > 1e-3
    for other in (np.roll(numbers, 1, 0), np.roll(numbers, 1, 1), uniform(8, np.arange(300)[:, None], np.arange(400))):
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(numbers.size)
    assert uniform(3, 4) != uniform(4, 3)
    assert uniform(1, 2, 3) == pytest.approx(0.9169461)  # pinned, so that runs resume after an update


def test_proportions_are_those_of_the_settings() -> None:
    given = blocks(4000)
    ids, _, _, is_real = given
    seen, labels = masker(smoothing=0.0)(*given, epoch=0)
    predicted = labels != NOT_PREDICTED
    assert (labels[predicted] == ids[predicted]).all()
    assert (seen[~predicted] == ids[~predicted]).all()
    assert not (predicted & ~is_real).any()
    assert not np.isin(ids[predicted], SPECIAL).any()
    total = int(predicted.sum())
    assert total / is_real.sum() == pytest.approx(0.15, rel=0.01)
    assert (np.abs(predicted.sum(axis=1) - 0.15 * is_real.sum(axis=1)) < 1).all(), "in each block, except for rounding"

    # One in 46 of the random replacements is the token itself.
    fates = [(seen == MASK) & predicted, (seen == ids) & predicted, (seen != ids) & (seen != MASK) & predicted]
    expected = np.array([0.8, 0.1 + 0.1 / 46, 0.1 * 45 / 46]) * total
    assert chisquare([fate.sum() for fate in fates], expected).pvalue > 1e-3
    replaced = seen[fates[2]]
    assert not np.isin(replaced, SPECIAL).any()
    assert chisquare(np.bincount(replaced, minlength=VOCABULARY)[4:]).pvalue > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.7, 1.5])
def test_rare_tokens_are_predicted_as_often_as_the_smoothing_says(smoothing: float) -> None:
    """With one prediction per block, a token's chance is its weight divided by the sum of the block's weights."""
    counts = np.zeros(VOCABULARY, np.int64)
    counts[4:] = 2 ** (np.arange(46) % 12)
    rows = 60_000
    ids = np.tile(np.arange(4, 16), (rows, 1))
    given = ids, np.arange(rows), np.zeros(rows, np.int64), np.ones_like(ids, bool)
    _, labels = masker(counts, smoothing=smoothing, proportion=0.01)(*given, epoch=0)
    predicted = labels[labels != NOT_PREDICTED]
    assert len(predicted) == rows, "at least one, however small the proportion"
    weights = counts[4:16].astype(float) ** -smoothing
    found = np.bincount(predicted, minlength=16)[4:16]
    assert chisquare(found, weights / weights.sum() * rows).pvalue > 1e-3


def test_several_tokens_of_a_block_are_drawn_without_replacement() -> None:
    """Two of three tokens of weights 1, 1/2 and 1/4: the closed form of successive draws."""
    counts = np.ones(VOCABULARY, np.int64)
    counts[[4, 5, 6]] = [1, 2, 4]
    ids = np.tile([4, 5, 6], (40_000, 1))
    given = ids, np.arange(len(ids)), np.zeros(len(ids), np.int64), np.ones_like(ids, bool)
    _, labels = masker(counts, smoothing=1.0, proportion=2 / 3)(*given, epoch=0)
    left_out = np.array([int((labels == token).any(axis=1).sum()) for token in (4, 5, 6)])
    weights = {4: 1.0, 5: 0.5, 6: 0.25}

    def pair(first: int, second: int) -> float:
        return weights[first] / 1.75 * weights[second] / (1.75 - weights[first])

    expected = [sum(pair(a, b) for a in weights for b in weights if a != b and t in (a, b)) for t in weights]
    assert left_out.sum() == 2 * len(ids)
    assert left_out / len(ids) == pytest.approx(expected, abs=0.01)


def test_a_blocks_masks_do_not_depend_on_its_batch_and_differ_between_epochs() -> None:
    ids, rows, pieces, is_real = blocks(64)
    mask = masker()
    seen, labels = mask(ids, rows, pieces, is_real, epoch=3)
    some = np.array([5, 60, 17])
    wider = np.pad(ids[some], ((0, 0), (0, 24))), rows[some], pieces[some], np.pad(is_real[some], ((0, 0), (0, 24)))
    again, labels_again = mask(*wider, epoch=3)
    assert np.array_equal(again[:, :40], seen[some])
    assert np.array_equal(labels_again[:, :40], labels[some])
    assert (mask.target_counts(*wider, epoch=3) == (labels[some] != NOT_PREDICTED).sum(axis=1)).all()
    for other in (mask(ids, rows, pieces, is_real, epoch=4), mask(ids, rows, pieces + 1, is_real, epoch=3)):
        assert not np.array_equal(other[1], labels)
        assert (other[1] != labels).any(axis=1).mean() > 0.9


def test_a_block_of_special_tokens_alone_predicts_nothing() -> None:
    ids = np.full((1, 12), 1)
    seen, labels = masker()(ids, np.zeros(1, int), np.zeros(1, int), np.ones_like(ids, bool), epoch=0)
    assert (labels == NOT_PREDICTED).all()
    assert (seen == 1).all()


def test_causal_targets_are_the_tokens_that_follow() -> None:
    ids = np.array([[5, 6, 7, 8], [5, 6, 0, 0]])
    is_real = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    none = NOT_PREDICTED
    assert causal_targets(ids, is_real).tolist() == [[6, 7, 8, none], [6, none, none, none]]
