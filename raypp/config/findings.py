"""pydantic's validation errors as sentences: place, what is wrong, the value given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from raypp.config.data import LanguageModelingTask, OwnTask
from raypp.config.fields import field_path, fields_at


def sentences(error: ValidationError, values: dict[str, Any], place: Callable[[str], str]) -> list[str]:
    """One sentence for each validation error.

    Args:
        values: the nested values that were validated.
        place: returns where a field path was written.
    """
    findings = error.errors(include_url=False)
    # A value that is neither a number nor a range has two errors, one for each; one is enough.
    findings = [f for f in findings if f["type"] != "tuple_type" or len(findings) == 1]
    return [_sentence(f, values, place) for f in findings if _is_meant(f["loc"], values.get("task"))]


def _is_meant(loc: tuple[Any, ...], task: Any) -> bool:
    """Whether a finding concerns the form in which the task is given: pydantic tries all forms and reports each."""
    if loc[:1] != ("task",) or len(loc) < 2:
        return True
    if not isinstance(task, dict):
        return bool(loc[1] == "str")
    form = LanguageModelingTask if task.get("kind") == "language_modeling" else OwnTask
    return form.__name__ in str(loc[1])


def _sentence(finding: Any, values: dict[str, Any], place: Callable[[str], str]) -> str:
    """One of pydantic's findings as: place, what is wrong, the value given, what is allowed."""
    loc = field_path(finding["loc"])
    where = place(loc)
    kind, given, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        *section, key = loc.split(".")
        fields = fields_at(section, values)
        near = difflib.get_close_matches(key, fields, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: there is no such setting (got {given!r}); {hint}allowed here: {', '.join(sorted(fields))}"
    if kind == "missing":
        return f"{where}: is missing; it has no default"
    if kind == "union_tag_invalid":
        key = "method" if loc.endswith("pruning") else "kind"
        allowed = context["expected_tags"].replace("'", "")
        return f"{where}.{key}: must be one of {allowed}, got {context['tag']!r}"
    if kind == "union_tag_not_found":
        key = "method" if loc.endswith("pruning") else "kind"
        return f"{where}.{key}: is missing; it determines which fields are allowed here, got {given!r}"
    if kind == "value_error":
        return f"{where}: {context['error']}"
    message = finding["msg"].removeprefix("Input ").replace("should", "must").replace("valid ", "")
    return f"{where}: {message}, got {given!r}"
