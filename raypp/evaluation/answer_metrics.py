"""Exact match and F1 of answers, as SQuAD's evaluation defines them (Rajpurkar et al. 2016, section 6.1, and 2018).

Both compare normalized answers: lower case, no punctuation, no articles, single spaces. Of several gold answers the one
that fits best counts. Version 2.0 gives a question without an answer the gold answer "", and differs from version 1.1
where nothing is left of an answer when it is normalized.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """The words of an answer that are compared."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 where both are the same words, else 0.0."""
    return float(normalized(answer) == normalized(gold))


def word_f1(answer: str, gold: str) -> float:
    """F1 of the words that both have, counted as often as both have them; 0.0 where they share none."""
    answered, wanted = normalized(answer).split(), normalized(gold).split()
    common = (Counter(answered) & Counter(wanted)).total()
    return 2 * common / (len(answered) + len(wanted)) if common else 0.0


def word_f1_or_none(answer: str, gold: str) -> float:
    """`word_f1`, but 1.0 where neither has words: none is the right answer to a question that has none."""
    return word_f1(answer, gold) if normalized(answer) or normalized(gold) else 1.0


ANSWER_METRICS = {"f1": word_f1, "exact_match": exact_match}
"""The metrics that the task table may name of question answering."""


def answer_metrics(answers: Sequence[str], gold: Sequence[Sequence[str]], unanswerable: bool) -> dict[str, float]:
    """`f1` and `exact_match`, means over questions from 0 to 1 (SQuAD's script prints percent).

    Args:
        answers: one a question; "" for none.
        gold: the answers of each question; none where the context has none.
        unanswerable: whether there are such questions in the data set, which is measured as version 2.0 is. Then also
            both means over the questions with and without an answer: `has_answer_f1`, … (HasAns in SQuAD's script),
            `no_answer_f1`, … (NoAns).

    Raises:
        ValueError: there are no questions, or one has no gold answer in a data set where all are answerable.
    """
    if not answers:
        raise ValueError("metrics need at least one labelled question, got none")
    wanted, measures = gold, ANSWER_METRICS
    if unanswerable:
        # An answer of articles and punctuation alone is none, unless no other is there.
        wanted = [[text for text in texts if normalized(text)] or [""] for texts in gold]
        measures = ANSWER_METRICS | {"f1": word_f1_or_none}
    scores = {
        name: np.array(
            [max(score(answer, text) for text in texts) for answer, texts in zip(answers, wanted, strict=True)]
        )
        for name, score in measures.items()
    }
    metrics = {name: float(values.mean()) for name, values in scores.items()}
    if unanswerable:
        answered = np.array([bool(texts) for texts in gold])
        for part, rows in (("has_answer", answered), ("no_answer", ~answered)):
            if rows.any():
                metrics |= {f"{part}_{name}": float(values[rows].mean()) for name, values in scores.items()}
    return metrics
