"""The grammars: the same everywhere, with separate splits, and labels that follow from composition."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from raw_examples import rows
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from raypp.config import SyntheticSource
from raypp.data import synthetic
from raypp.data.chance import split_of
from raypp.data.pairs import DEEDS, NUMBERS, PEOPLE, PLACES, TIMES
from raypp.data.raw import Example
from raypp.data.sentiment import ASPECTS, BLAME, PRAISE
from raypp.data.sources import open_source
from raypp.data.synthetic import SyntheticData
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.tasks import TASKS

PINNED: dict[str, list[Example]] = {
    "sentiment": [
        ("nobody can deny that the museum was very atrocious .", None, 0),
        ("i found the opening quite beautiful .", None, 1),
        ("i found the view quite tedious .", None, 0),
    ],
    "paraphrase": [
        (
            "nine employees were accused by the teacher at nightfall .",
            "after the evening meal , the teacher blamed nine workers .",
            0,
        ),
        (
            "the journalist was fired by ten aviators before the midday meal .",
            "it was 10 aviators who dismissed the reporter before the midday meal .",
            1,
        ),
    ],
    "similarity": [
        (
            "it was the sailor who saved the gardener on the road in winter .",
            "the aviator detained the doctor on the pavement in the fall .",
            1.5,
        ),
        (
            "the mariner frightened the writer in the harbor early in the day .",
            "it was the investigator who consoled the stranger in the shop in autumn .",
            0.0,
        ),
    ],
}

NAMES = ("sentiment", "paraphrase", "similarity")


def examples(name: str, split: str, train_rows: int = 8000, dev_rows: int = 1000, seed: int = 0) -> list[Example]:
    source = SyntheticSource(kind="synthetic", train_rows=train_rows, dev_rows=dev_rows, seed=seed)
    return list(SyntheticData(kind_of(TASKS[name]), source, None).examples(split))


def sentences(given: list[Example]) -> set[str]:
    return {text for example in given for text in example[:2] if text is not None}


@pytest.fixture(scope="module")
def written() -> dict[tuple[str, str], list[Example]]:
    """The default sizes of every task and split."""
    return {(name, split): examples(name, split) for name in NAMES for split in ("train", "dev", "test")}


def test_the_first_examples_are_pinned() -> None:
    assert examples("sentiment", "train", train_rows=3) == PINNED["sentiment"]
    assert examples("paraphrase", "dev", dev_rows=2) == PINNED["paraphrase"]
    assert examples("similarity", "test", dev_rows=2) == PINNED["similarity"]


@pytest.mark.parametrize("name", NAMES)
def test_more_rows_begin_with_those_of_fewer_and_seeds_differ(name: str) -> None:
    assert examples(name, "dev", dev_rows=50) == examples(name, "dev", dev_rows=80)[:50]
    assert examples(name, "dev", dev_rows=50) != examples(name, "dev", dev_rows=50, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_sentence_and_examples_differ(written: dict[tuple[str, str], list[Example]], name: str) -> None:
    splits = {split: written[name, split] for split in ("train", "dev", "test")}
    assert [len(given) for given in splits.values()] == [8000, 1000, 1000]
    for given in splits.values():
        assert len({example[:2] for example in given}) == len(given)
    for first, second in itertools.combinations(splits.values(), 2):
        assert not sentences(first) & sentences(second)
    # The same holds for other seeds, because the words decide.
    assert not sentences(examples(name, "dev", seed=5)) & sentences(splits["train"])


def test_dev_has_no_pair_of_aspect_and_word_from_train(written: dict[tuple[str, str], list[Example]]) -> None:
    aspects, words = set(ASPECTS), set(PRAISE) | set(BLAME)
    for split in ("train", "dev", "test"):
        for sentence, _, _ in written["sentiment", split]:
            said = sentence.split()
            # Each clause names its aspect before its word.
            pairs = zip((w for w in said if w in aspects), (w for w in said if w in words), strict=True)
            assert all(split_of(aspect, word) == split for aspect, word in pairs), sentence


def test_labels_are_balanced(written: dict[tuple[str, str], list[Example]]) -> None:
    for name in ("sentiment", "paraphrase"):
        for split in ("train", "dev"):
            labels = [example[2] for example in written[name, split]]
            assert np.mean(labels) == 0.5
    scores = Counter(example[2] for example in written["similarity", "train"])
    assert set(scores) == {half / 2 for half in range(11)}
    assert min(scores.values()) > 200
    assert max(scores.values()) < 2000


def clause_polarity(clause: str) -> int:
    """The polarity of one opinion, read from its words: praise or blame, negated or not."""
    words = clause.split()
    praises = any(word in PRAISE for word in words)
    assert praises != any(word in BLAME for word in words), clause
    turned = any(f" {marker} " in f" {clause} " for marker in TURNERS)
    return int(praises != turned)


TURNERS = ("not", "n't", "never", "hardly", "far from", "anything but", "nobody would", "had heard")


def meaning(sentence: str) -> int:
    """The label by an independent reading: find the main clause, then its polarity."""
    text = sentence.removesuffix(" .")
    if text.startswith(("on ", "this ", "as i told ", "to answer ", "again ,", "back in ")):
        text = text.replace(" : ", " , ", 1).split(" , ", 1)[1]
    if text.startswith(("although ", "while ", "since ")):
        return clause_polarity(text.split(" , ")[1])
    for turn in (" , but ", " , yet ", " ; still , "):
        if turn in text:
            return clause_polarity(text.split(turn)[1])
    for addition in (" , although ", " , even if ", " because "):
        text = text.split(addition)[0]
    if "had heard" in text:
        return clause_polarity(text)
    first, *more = text.split(" and ")
    polarity = clause_polarity(first)
    assert all(clause_polarity(other) == polarity for other in more), sentence
    return polarity


def test_sentiment_is_what_the_sentence_says(written: dict[tuple[str, str], list[Example]]) -> None:
    for sentence, _, label in written["sentiment", "dev"]:
        assert meaning(sentence) == label, sentence


def concepts(tables: dict[str, tuple[tuple[str, ...], ...]], sentence: str) -> dict[str, set[int]]:
    """The concepts of each table that a sentence names; the longest words are searched first."""
    words = [(word, name, i) for name, table in tables.items() for i, synonyms in enumerate(table) for word in synonyms]
    words += [(f"{word}s", name, i) for word, name, i in words if name == "people"]
    found: dict[str, set[int]] = {name: set() for name in tables}
    left = f" {sentence} "
    for word, name, i in sorted(words, key=lambda entry: -len(entry[0])):
        if f" {word} " in left:
            found[name].add(i)
            left = left.replace(f" {word} ", "  ")
    return found


def test_paraphrases_name_the_same_things(written: dict[tuple[str, str], list[Example]]) -> None:
    tables = {"people": PEOPLE, "deed": DEEDS, "time": TIMES, "number": NUMBERS}
    changed: Counter[str] = Counter()
    for first, second, label in written["paraphrase", "dev"]:
        assert second is not None
        told, retold = concepts(tables, first), concepts(tables, second)
        same = told == retold and ("never" in first) == ("never" in second)
        if label == 1:
            assert same, (first, second)
        else:
            changed["roles" if same else "words"] += 1
    # A pair that is no paraphrase names another thing, except for swapped roles.
    assert 0.02 < changed["roles"] / changed.total() < 0.1


def test_similarity_counts_shared_parts(written: dict[tuple[str, str], list[Example]]) -> None:
    tables = {"deed": DEEDS, "time": TIMES, "place": PLACES}
    for first, second, score in written["similarity", "dev"]:
        assert second is not None
        assert score is not None
        told, retold = concepts(tables, first), concepts(tables, second)
        points = [
            1.0 if told[name] == retold[name] else 0.5 * ({i ^ 1 for i in told[name]} == retold[name])
            for name in tables
        ]
        assert sum(points) <= score <= sum(points) + 2, (first, second)


def bag_of_words(train: list[Example], dev: list[Example], words: int) -> tuple[np.ndarray, np.ndarray]:
    vectorizer = CountVectorizer(ngram_range=(1, words), token_pattern=r"\S+", binary=True)
    texts = [[" ".join(filter(None, example[:2])) for example in given] for given in (train, dev)]
    return vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])


@pytest.mark.parametrize(("name", "at_most"), [("sentiment", 0.8), ("paraphrase", 0.8)])
@pytest.mark.parametrize("words", [1, 2])
def test_counting_words_does_not_solve_the_task(
    written: dict[tuple[str, str], list[Example]], name: str, at_most: float, words: int
) -> None:
    train, dev = written[name, "train"], written[name, "dev"]
    x_train, x_dev = bag_of_words(train, dev, words)
    model = LogisticRegression(max_iter=300).fit(x_train, [example[2] for example in train])
    assert model.score(x_dev, [example[2] for example in dev]) < at_most


def test_neither_overlap_nor_counting_words_solves_the_pair_tasks(
    written: dict[tuple[str, str], list[Example]],
) -> None:
    def overlap(example: Example) -> float:
        first, second = set(str(example[0]).split()), set(str(example[1]).split())
        return len(first & second) / len(first | second)

    paraphrase, similarity = written["paraphrase", "dev"], written["similarity", "dev"]
    shared, labels = np.array([overlap(example) for example in paraphrase]), np.array([e[2] for e in paraphrase])
    assert max(np.mean((shared > cut) == labels) for cut in np.linspace(0, 1, 41)) < 0.7
    scores = [example[2] for example in similarity]
    assert np.corrcoef([overlap(example) for example in similarity], scores)[0, 1] < 0.8
    train = written["similarity", "train"]
    x_train, x_dev = bag_of_words(train, similarity, 1)
    assert np.corrcoef(Ridge().fit(x_train, [e[2] for e in train]).predict(x_dev), scores)[0, 1] < 0.9


def test_sentences_are_short(written: dict[tuple[str, str], list[Example]]) -> None:
    for (name, _), given in written.items():
        lengths = [len(text.split()) for text in sentences(given)]
        assert max(lengths) <= 30, name
        assert 7 <= np.mean(lengths) <= 16, name


def test_a_grammar_that_runs_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "ATTEMPTS", 1)
    with pytest.raises(ConfigError, match=r"data\.source\.dev_rows: the grammar of sentiment ran out of new sentences"):
        examples("sentiment", "dev")


def test_synthetic_splits_open_like_all_others() -> None:
    source = SyntheticSource(kind="synthetic", train_rows=12, dev_rows=5)
    raw = open_source(kind_of(TASKS["similarity"]), source, max_train_rows=10)
    assert [len(rows(raw, split)) for split in raw.splits] == [10, 5, 5]
    assert next(raw.read("train")).schema == kind_of(TASKS["similarity"]).schema()
    other = open_source(raw.kind, SyntheticSource(kind="synthetic", train_rows=12, dev_rows=5, seed=1))
    assert other.fingerprint("dev") != raw.fingerprint("dev")
