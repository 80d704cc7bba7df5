"""From logits of tokens to answers in words: the best spans of every window, and the best of an example's windows."""

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
"""Score, first token and last token of a span; the best first."""


@dataclass(frozen=True)
class Candidate:
    """A part of the context that may be the answer."""

    text: str
    score: float
    """The logit of its start plus that of its end."""


@dataclass(frozen=True)
class Answer:
    """What a model answers to one question."""

    row: int
    """The example's position in the source."""
    id: str
    text: str
    """"" where it says that the context has no answer."""
    gold: tuple[str, ...] | None
    """The answers that are right; none where the context has none, None where that is unknown."""
    candidates: tuple[Candidate, ...]
    """The best parts of the context, best first; different texts."""
    no_answer_score: float
    """Least over the windows: the logits of "no answer here" as start and as end."""

    @property
    def score(self) -> float:
        """That of the best part of the context; -inf where a context has no tokens."""
        return self.candidates[0].score if self.candidates else -math.inf

    @property
    def no_answer_probability(self) -> float:
        """Of no answer against the best part of the context."""
        return float(1 / (1 + np.exp(np.clip(self.score - self.no_answer_score, -500, 500))))

    def candidate_records(self) -> list[dict[str, Any]]:
        """The candidates as JSON, with their probabilities among themselves."""
        scores = np.array([candidate.score for candidate in self.candidates])
        weights = np.exp(scores - scores.max(initial=-math.inf)) if len(scores) else scores
        return [
            {"text": candidate.text, "score": candidate.score, "probability": float(weight / weights.sum())}
            for candidate, weight in zip(self.candidates, weights, strict=True)
        ]


def best_answers(predictions: Predictions, settings: AnswerSettings, unanswerable: bool) -> Iterator[Answer]:
    """The answer to every question of a split, in the order of its rows.

    Args:
        predictions: logits [tokens, 2] as start and as end.
        unanswerable: whether there may be none. There is none where its score is above the best candidate's by more
            than the threshold.
    """
    features = predictions.features
    assert isinstance(features, Features), "as evaluation_data made them"
    assert features.reference is not None, "features of question answering keep their contexts"
    columns = [flatten(features.reference.column(name), np.int32)[0] for name in ("token_starts", "token_ends")]
    places = np.stack(columns, axis=1)
    starts = np.flatnonzero(features.reference.column("window").to_numpy() == 0)
    ends = np.append(starts[1:], len(features))
    examples = features.reference.select(["id", "context", "answers"]).take(starts)
    for start, end, example in zip(starts, ends, examples.to_pylist(), strict=True):
        found: dict[str, float] = {}
        no_answer = math.inf
        for window in range(start, end):
            tokens = slice(features.offsets[window], features.offsets[window + 1])
            logits, place = predictions.logits[tokens], places[tokens]
            no_answer = min(no_answer, float(logits[0].sum()))
            for score, first, last in best_spans(logits, place[:, 0] >= 0, settings.n_best, settings.max_tokens):
                text = example["context"][place[first, 0] : place[last, 1]].strip()
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
    """The spans of highest score (logit of the start plus logit of the end), exactly.

    Args:
        logits: [tokens, 2].
        allowed: [tokens]: what may be in a span; one run of tokens.
        count: spans at most.
        max_tokens: of a span.
    """
    places = np.flatnonzero(allowed)
    if not len(places):
        return []
    begin = int(places[0])
    # scores[i, length]: the span of `length` + 1 tokens from the i-th on.
    room = np.full(max_tokens - 1, -np.inf)
    ends = np.concatenate([logits[places, 1].astype(np.float64), room])
    scores = logits[places, 0, None].astype(np.float64) + np.lib.stride_tricks.sliding_window_view(ends, max_tokens)
    flat = scores.ravel()
    best = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    firsts, lengths = np.divmod(best[np.isfinite(flat[best])], max_tokens)
    return [
        (float(scores[first, length]), begin + int(first), begin + int(first + length))
        for first, length in zip(firsts, lengths, strict=True)
    ]
