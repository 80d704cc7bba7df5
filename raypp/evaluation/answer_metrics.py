"""Exact match and F1 of answers, as SQuAD's evaluation defines them (Rajpurkar et al. 2016, section 6.1, and 2018).

Both compare normalized answers: lower case, no punctuation, no articles, single spaces. If there are several gold
answers, the best match counts. In version 2.0 a question without an answer has the gold answer "". The two versions
differ for answers that are empty after normalization.
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
    """The normalized answer, which is what the metrics compare."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 if both have the same words, otherwise 0.0."""
    return float(normalized(answer) == normalized(gold))


def word_f1(answer: str, gold: str) -> float:
    """F1 of the words that both have, with multiplicity; 0.0 if they share none."""
    answered, wanted = normalized(answer).split(), normalized(gold).split()
    common = (Counter(answered) & Counter(wanted)).total()
    return 2 * common / (len(answered) + len(wanted)) if common else 0.0


def word_f1_or_none(answer: str, gold: str) -> float:
    """`word_f1`, but 1.0 if neither has words: then no answer is the right answer."""
    return word_f1(answer, gold) if normalized(answer) or normalized(gold) else 1.0


ANSWER_METRICS = {"f1": word_f1, "exact_match": exact_match}
"""The metrics of question answering that the task table may name."""


def answer_metrics(answers: Sequence[str], gold: Sequence[Sequence[str]], unanswerable: bool) -> dict[str, float]:
    """`f1` and `exact_match`: means over all questions, from 0 to 1 (SQuAD's script prints percent).

    Args:
        answers: one for each question; "" for no answer.
        gold: the gold answers of each question; empty if the context has no answer.
        unanswerable: whether the data set has such questions. Then the metrics are those of version 2.0, and both means
            are also given over the questions with an answer (`has_answer_f1`, …; HasAns in SQuAD's script) and over
            those without one (`no_answer_f1`, …; NoAns).

    Raises:
        ValueError: there are no questions, or one has no gold answer in a data set where all are answerable.
    """
    if not answers:
        raise ValueError("metrics need at least one labelled question, got none")
    wanted, measures = gold, ANSWER_METRICS
    if unanswerable:
        # A gold answer of only articles and punctuation is ignored, as in version 2.0; without any other, "" is right.
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
