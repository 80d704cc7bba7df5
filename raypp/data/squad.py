"""SQuAD's published files: JSON of articles, which have paragraphs, which have questions with answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raypp.data.raw import Example
from raypp.data.values import BadValueError
from raypp.errors import ConfigError
from raypp.storage import Location

if TYPE_CHECKING:
    from raypp.kinds import TaskKind


def squad_examples(file: Location, kind: TaskKind) -> Iterator[Example]:
    """All questions of a file of version 1.1 or 2.0, in the file's order.

    Raises:
        ConfigError: the file is not such JSON, or a question cannot be read; names its place.
    """
    names = [*kind.columns, kind.label_column]
    for place, context, question in _questions(file):
        record = {**question, "context": context}
        if absent := [name for name in names if name not in record]:
            raise ConfigError(f"{place}: no {', '.join(absent)}; it has: {', '.join(question)}")
        try:
            texts = kind.texts([record[name] for name in kind.columns], kind.columns)
            yield *texts, kind.label(record[kind.label_column], kind.label_column, {})
        except BadValueError as bad:
            raise bad.at(place) from None


def _questions(file: Location) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(place for messages, context, question) of each question."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"data.source: {file} cannot be read: {error}") from error
    try:
        articles = json.loads(content)["data"]
        for article_number, article in enumerate(articles):
            for number, paragraph in enumerate(article["paragraphs"]):
                for question in paragraph["qas"]:
                    place = f"{file}, article {article_number + 1}, paragraph {number + 1}, question {question['id']!r}"
                    yield place, paragraph["context"], question
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not SQuAD's JSON ({type(error).__name__}: {error}); allowed: data, a list of articles, each "
            "with paragraphs, each with context and qas"
        ) from error
