"""Exact match and F1 against a second, word by word implementation of their published definition."""

from __future__ import annotations

import random

import pytest

from raypp.evaluation.answer_metrics import answer_metrics, exact_match, normalized, word_f1, word_f1_or_none

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def words(answer: str) -> list[str]:
    """The words of the answer: in lower case, without punctuation, without the articles a, an and the."""
    kept = "".join(character for character in answer.lower() if character not in PUNCTUATION)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def f1_of(answer: str, gold: str) -> float:
    """The harmonic mean of the precision and recall of the words, with multiplicity."""
    answered, wanted = words(answer), words(gold)
    left, common = list(wanted), 0
    for word in answered:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(answered), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


VOCABULARY = [
    "The",
    "the",
    "a",
    "an",
    "Theory",
    "cat",
    "Cat's",
    "cats",
    "sat",
    "on",
    "1,000",
    "U.S.",
    "—",
    "-",
    "naïve",
]


def test_every_answer_is_scored_as_defined() -> None:
    chance = random.Random(0)
    scores = []
    for _ in range(2000):
        answer, gold = (" ".join(chance.choices(VOCABULARY, k=chance.randint(0, 5))) for _ in range(2))
        assert exact_match(answer, gold) == float(words(answer) == words(gold))
        assert word_f1(answer, gold) == pytest.approx(f1_of(answer, gold))
        both_none = not words(answer) and not words(gold)
        assert word_f1_or_none(answer, gold) == pytest.approx(1.0 if both_none else f1_of(answer, gold))
        scores.append(word_f1(answer, gold))
    assert min(scores) == 0.0
    assert max(scores) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Denver Broncos!", "Denver  Broncos", 1.0, 1.0),
        ("Denver", "the Denver Broncos", 0.0, 2 / 3),
        ("a cat", "an cat.", 1.0, 1.0),
        ("theory", "ory", 0.0, 0.0),
        ("the", "", 1.0, 0.0),
        ("", "Denver", 0.0, 0.0),
        ("cat cat dog", "cat dog dog", 0.0, 2 / 3),
    ],
)
def test_answers_worked_out_by_hand(answer: str, gold: str, exact: float, f1: float) -> None:
    assert (exact_match(answer, gold), word_f1(answer, gold)) == (exact, pytest.approx(f1))


def test_articles_are_words_and_not_parts_of_them() -> None:
    assert normalized("An analysis: the theme") == "analysis theme"


def test_the_best_of_several_gold_answers_counts() -> None:
    metrics = answer_metrics(
        ["Santa Clara", "five"], [["Levi's Stadium", "Santa Clara, California"], ["5", "five"]], False
    )
    assert metrics == {"f1": pytest.approx((4 / 5 + 1) / 2), "exact_match": 0.5}


@pytest.mark.parametrize(
    ("answer", "gold", "first", "second"),
    [
        ("The", ["the", "a big thing"], (1.0, 0.0), (0.0, 0.0)),
        ("The", ["The"], (1.0, 0.0), (1.0, 1.0)),
        ("big", ["the", "a big thing"], (0.0, 2 / 3), (0.0, 2 / 3)),
    ],
)
def test_answers_of_only_articles_are_scored_as_each_version_of_the_script_does(
    answer: str, gold: list[str], first: tuple[float, float], second: tuple[float, float]
) -> None:
    """Version 1.1 compares them like all others. Version 2.0 treats them as no answer, and no answer is right if all
    gold answers are such answers."""
    for unanswerable, expected in ((False, first), (True, second)):
        metrics = answer_metrics([answer], [gold], unanswerable)
        assert (metrics["exact_match"], metrics["f1"]) == (expected[0], pytest.approx(expected[1]))


def test_questions_with_and_without_an_answer_have_separate_means() -> None:
    answers, gold = ["", "no", "", "red car"], [[], [], ["blue"], ["a red car", "car"]]
    assert answer_metrics(answers, gold, True) == {
        **{"f1": 0.5, "exact_match": 0.5},
        **{"has_answer_f1": 0.5, "has_answer_exact_match": 0.5},
        **{"no_answer_f1": 0.5, "no_answer_exact_match": 0.5},
    }
    assert "no_answer_f1" not in answer_metrics(["red"], [["red"]], True), "there is no such question"


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one labelled question"):
        answer_metrics([], [], False)
