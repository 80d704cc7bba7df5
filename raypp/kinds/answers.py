"""Turns logits of tokens into answers: the best spans of each window, and the best over an example's windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypp.config import AnswerSettings
from raypp.data.features import Features, flatten

if TYPE_CHECKING:
    from raypp.evaluation.predictions import Predictions

Spans = list[tuple[float, int, int]]
"""(score, first token, last token) of each span; the highest score first."""


@dataclass(frozen=True)
class Candidate:
    """A part of the context that may be the answer."""

    text: str
    score: float
    """The logit of its start plus the logit of its end."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question."""

    row: int
    """The example's position in the source."""
    id: str
    text: str
    """The answer; empty if the model finds none in the context."""
    gold: tuple[str, ...] | None
    """The right answers; empty if the context has none, None if they are unknown."""
    candidates: tuple[Candidate, ...]
    """The best parts of the context, the best one first; their texts differ."""
    no_answer_score: float
    """The first token's logit as start plus its logit as end; the lowest sum over the windows."""

    @property
    def score(self) -> float:
        """Score of the best candidate; -inf if there is none."""
        return self.candidates[0].score if self.candidates else -math.inf

    @property
    def no_answer_probability(self) -> float:
        """Probability of no answer against the best candidate."""
        return float(1 / (1 + np.exp(np.clip(self.score - self.no_answer_score, -500, 500))))

    def candidate_records(self) -> list[dict[str, Any]]:
        """The candidates as JSON objects; their probabilities sum to 1."""
        scores = np.array([candidate.score for candidate in self.candidates])
        weights = np.exp(scores - scores.max(initial=-math.inf)) if len(scores) else scores
        return [
            {"text": candidate.text, "score": candidate.score, "probability": float(weight / weights.sum())}
            for candidate, weight in zip(self.candidates, weights, strict=True)
        ]


def best_answers(predictions: Predictions, settings: AnswerSettings, unanswerable: bool) -> Iterator[Answer]:
    """The answer to each question of a split, in the order of its rows.

    Args:
        predictions: with logits [tokens, 2], as start and as end.
        unanswerable: whether a question may have no answer. Then the answer is empty if the score of no answer exceeds
            the best candidate's by more than `settings.null_threshold`.
    """
    features = predictions.features
    assert isinstance(features, Features), "as evaluation_data made them"
    assert features.reference is not None, "features of question answering keep their contexts"
    columns = [flatten(features.reference.column(name), np.int32)[0] for name in ("token_starts", "token_ends")]
    positions = np.stack(columns, axis=1)
    starts = np.flatnonzero(features.reference.column("window").to_numpy() == 0)
    ends = np.append(starts[1:], len(features))
    examples = features.reference.select(["id", "context", "answers"]).take(starts)
    for start, end, example in zip(starts, ends, examples.to_pylist(), strict=True):
        found: dict[str, float] = {}
        no_answer = math.inf
        for window in range(start, end):
            tokens = slice(features.offsets[window], features.offsets[window + 1])
            logits, position = predictions.logits[tokens], positions[tokens]
            no_answer = min(no_answer, float(logits[0].sum()))
            for score, first, last in best_spans(logits, position[:, 0] >= 0, settings.n_best, settings.max_tokens):
                text = example["context"][position[first, 0] : position[last, 1]].strip()
                if text:
                    found[text] = max(score, found.get(text, -math.inf))
        best = sorted(found.items(), key=lambda item: -item[1])[: settings.n_best]
        candidates = tuple(Candidate(text, score) for text, score in best)
        none = not candidates or (unanswerable and no_answer - candidates[0].score > settings.null_threshold)
        yield Answer(
            row=int(features.rows[start]),
            id=example["id"],
            text="" if none else candidates[0].text,
            gold=None if example["answers"] is None else tuple(answer["text"] for answer in example["answers"]),
            candidates=candidates,
            no_answer_score=no_answer,
        )


def best_spans(logits: npt.NDArray[Any], allowed: npt.NDArray[np.bool_], count: int, max_tokens: int) -> Spans:
    """The spans with the highest scores (logit of the start plus logit of the end), exactly.

    Args:
        logits: [tokens, 2].
        allowed: [tokens]: the tokens that may be in a span; neighbors.
        count: maximum number of spans.
        max_tokens: maximum length of a span.
    """
    tokens = np.flatnonzero(allowed)
    if not len(tokens):
        return []
    begin = int(tokens[0])
    # scores[i, length] is the score of the span with `length` + 1 tokens that starts at the i-th allowed token.
    beyond = np.full(max_tokens - 1, -np.inf)
    ends = np.concatenate([logits[tokens, 1].astype(np.float64), beyond])
    scores = logits[tokens, 0, None].astype(np.float64) + np.lib.stride_tricks.sliding_window_view(ends, max_tokens)
    flat = scores.ravel()
    best = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    firsts, lengths = np.divmod(best[np.isfinite(flat[best])], max_tokens)
    return [
        (float(scores[first, length]), begin + int(first), begin + int(first + length))
        for first, length in zip(firsts, lengths, strict=True)
    ]
