"""pydantic's validation errors as sentences: place, what is wrong, the value given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from raypp.config.data import LanguageModelingTask, OwnTask
from raypp.config.fields import field_path, fields_at
from raypp.config.sweep import AXIS_KINDS

# What a value must be, by pydantic's type of the error. Its own texts speak of Python.
MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a section of settings",
    "model_type": "a section of settings",
    "model_attributes_type": "a section of settings",
}


def sentences(error: ValidationError, values: dict[str, Any], place: Callable[[str], str]) -> list[str]:
    """One sentence for each problem.

    Args:
        values: the nested values that were validated.
        place: returns where a field path was written.
    """
    by_path: dict[tuple[str, ...], list[Any]] = {}
    for finding in error.errors(include_url=False):
        if _is_meant(finding["loc"], values.get("task")):
            by_path.setdefault(field_path(finding["loc"]), []).append(finding)
    said: list[str] = []
    for path, findings in by_path.items():
        where, given = place(".".join(path)), findings[0]["input"]
        if any(other[: len(path)] == path for other in by_path if other != path):
            # What is wrong inside the value says more. pydantic does not count wrong items, and finds a list too short.
            findings = [finding for finding in findings if finding["type"] not in (*MUST_BE, "too_short")]
        if any(finding["type"] in ("too_short", "too_long") for finding in findings):
            findings = [finding for finding in findings if finding["type"] not in MUST_BE]
        # Of a value that may be of several types, pydantic reports what each of them lacks.
        allowed = list(dict.fromkeys(each for finding in findings if (each := _allowed(finding)) is not None))
        if allowed:
            hint = f"; allowed in it: {', '.join((*AXIS_KINDS, 'when'))}" if path[:-1] == ("sweep", "space") else ""
            said.append(f"{where}: must be {' or '.join(allowed)}, got {given!r}{hint}")
        said += [_sentence(finding, path, values, place) for finding in findings if _allowed(finding) is None]
    return list(dict.fromkeys(said))


def _allowed(finding: Any) -> str | None:
    """What the value must be; None if pydantic does not say so."""
    _, must_be, allowed = finding["msg"].partition("Input should be ")
    return MUST_BE.get(finding["type"], allowed.replace("valid ", "") if must_be else None)


def _is_meant(loc: tuple[Any, ...], task: Any) -> bool:
    """Whether a finding concerns the form in which the task is given: pydantic tries all forms and reports each."""
    if loc[:1] != ("task",) or len(loc) < 2:
        return True
    if not isinstance(task, dict):
        return bool(loc[1] == "str")
    form = LanguageModelingTask if task.get("kind") == "language_modeling" else OwnTask
    return form.__name__ in str(loc[1])


def _sentence(finding: Any, path: tuple[str, ...], values: dict[str, Any], place: Callable[[str], str]) -> str:
    """One of pydantic's findings as: place, what is wrong, the value given, what is allowed."""
    where = place(".".join(path))
    kind, given, context = finding["type"], finding["input"], finding.get("ctx", {})
    discriminator = "method" if path[-1:] == ("pruning",) else "kind"
    match kind:
        case "extra_forbidden":
            *section, key = path
            fields = fields_at(section, values)
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"{where}: there is no such setting (got {given!r}); {hint}allowed here: {', '.join(fields)}"
        case "missing" if isinstance(finding["loc"][-1], int):
            return f"{place('.'.join(path[:-1]))}: has too few values, got {given!r}"
        case "missing":
            return f"{where}: is missing; it has no default"
        case "union_tag_invalid":
            allowed = context["expected_tags"].replace("'", "")
            return f"{where}.{discriminator}: must be one of {allowed}, got {context['tag']!r}"
        case "union_tag_not_found":
            return f"{where}.{discriminator}: is missing; it determines which fields are allowed here, got {given!r}"
        case "value_error":
            # A message about one setting of a section begins with its name.
            name, colon, rest = str(context["error"]).partition(": ")
            if colon and name in fields_at(path, values):
                return f"{place('.'.join((*path, name)))}: {rest}"
            return f"{where}: {context['error']}"
        case "string_pattern_mismatch":  # there is one pattern, that of a name
            return (
                f"{where}: must begin with a letter or a digit and have only letters, digits and . _ -, got {given!r}"
            )
        case "too_short" | "too_long":
            bound, number = (
                ("at least", context.get("min_length"))
                if kind == "too_short"
                else ("at most", context.get("max_length"))
            )
            return f"{where}: must have {bound} {number} value{'s' * (number != 1)}, got {given!r}"
    return f"{where}: {finding['msg'].replace('should', 'must')}, got {given!r}"
