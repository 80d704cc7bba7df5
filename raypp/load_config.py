"""Loads a YAML file and `section.field=value` overrides as an `Experiment`, or raises one `ConfigError` with every
problem.

A file may inherit from another file, its `base:` (a path relative to itself): mappings are merged key by key, all other
values are replaced. If a section changes its `method` or `kind`, the base's section is dropped, because its fields
belong to the old one. A setting replaces its alternative in the base (epochs and max_steps, for example). The
experiment.yaml of a run or sweep can be loaded, too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raypp.config import ALTERNATIVES, Experiment, method_name
from raypp.config.fields import DISCRIMINATORS, PATH_FIELDS
from raypp.config.findings import sentences
from raypp.errors import ConfigError
from raypp.yaml_text import Loader, dump_yaml, load_yaml


@dataclass
class _Tree:
    """Nested plain values, and the place (file and line) where each field path was written."""

    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment file and applies overrides such as `pruning.final_density=0.1`.

    Raises:
        ConfigError: lists every problem with its place, the value given and what is allowed.
    """
    tree = _read_tree(Path(path), seen=())
    problems = _apply_overrides(tree, overrides)
    tree.values.setdefault("name", Path(path).stem)
    if problems:
        raise ConfigError(problems)
    return _validate(tree, str(path))


def experiment_from(values: dict[str, Any], *, expand_paths: bool = True) -> Experiment:
    """Makes an experiment of nested dictionaries, with the same checks.

    Args:
        expand_paths: whether to expand `~` and `${VAR}`, for which every variable must be set. False for values that
            are only written to a file, which may be read on another machine.
    """
    return _validate(_Tree(dict(values)), "experiment", expand_paths=expand_paths)


def with_changes(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """The experiment with fields changed in the given order, with the same checks. A mapping replaces the whole
    section, whereas an override with a mapping is merged into it.

    Args:
        changes: new values by field path.

    Raises:
        ConfigError: names the changes that are not valid.
    """
    tree = _Tree(experiment.model_dump(mode="json", exclude_unset=True))
    problems: list[str] = []
    for name, value in changes.items():
        problems += _change(tree, name, value, f"{name}={value}", whole=True)
    if problems:
        raise ConfigError(problems)
    return _validate(tree, ", ".join(f"{name}={value}" for name, value in changes.items()))


def _validate(tree: _Tree, origin: str, *, expand_paths: bool = True) -> Experiment:
    problems = _expand_paths(tree, origin) if expand_paths else []
    try:
        experiment = Experiment.model_validate(tree.values)
    except ValidationError as error:
        problems += sentences(error, tree.values, lambda name: _place(name, tree, origin))
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return experiment


# --- files -----------------------------------------------------------------------------------------------------------


def _read_tree(path: Path, seen: tuple[Path, ...]) -> _Tree:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base: circular base: {' -> '.join(map(str, seen))}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}; give the path of an experiment file") from None
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        tree = _Tree({})
        problems = list(_walk(node, "", path, tree.places))
        if problems:
            raise ConfigError(problems)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: an experiment is a mapping of settings, got {text.strip()[:40]!r}")
        tree.values = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        if loader is not None:
            loader.dispose()
    tree.values.pop("provenance", None)  # recorded in the experiment.yaml of a run or sweep; not a setting
    base = tree.values.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{tree.places['base']}: base: must be the path of another experiment file, got {base!r}")
    parent = _read_tree(path.parent / base, (*seen, path.resolve()))
    return _Tree(_merge(parent.values, tree.values), {**parent.places, **tree.places})


def _walk(node: yaml.Node | None, prefix: str, path: Path, places: dict[str, str]) -> Iterator[str]:
    """Records the line of every field in `places`; yields a problem for each key that is not text or is a duplicate."""
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = f"{path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                yield (
                    f"{place}: {prefix.removesuffix('.') or 'the file'}: a key must be text, not a list or mapping; a "
                    "variable is written ${NAME}"
                )
                continue
            if any(key.value == other for other, *_ in children):
                yield f"{place}: {prefix}{key.value}: duplicate key in this section; keep one"
            children.append((key.value, key, value))
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, at, value in children:
        places[f"{prefix}{name}"] = f"{path}:{at.start_mark.line + 1}"
        yield from _walk(value, f"{prefix}{name}.", path, places)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for pair in ALTERNATIVES:
        if any(changes.get(name) is not None for name in pair):
            merged = {key: value for key, value in merged.items() if key not in pair}
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _changes_method(old, value):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _changes_method(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the section's method or kind changes."""
    return any(
        name in new and name in old and _normalized(new[name]) != _normalized(old[name]) for name in DISCRIMINATORS
    )


def _normalized(value: Any) -> Any:
    """A method or kind, with the original scripts' spellings of a method replaced by its name."""
    return method_name(value) if isinstance(value, str) else value


# --- overrides and paths ---------------------------------------------------------------------------------------------


def _apply_overrides(tree: _Tree, overrides: Iterable[str]) -> list[str]:
    """Applies all overrides; returns the problems."""
    problems: list[str] = []
    given: list[tuple[str, Any, str]] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            problems.append(f"{override!r}: an override is written section.field=value, for example train.epochs=2")
            continue
        try:
            given.append((name, load_yaml(text), override))
        except yaml.YAMLError:
            problems.append(f"{override!r}: the value is not valid YAML: {text!r}")
    for name, value, override in given:
        problems += _change(tree, name, value, override)
    if problems:
        return problems
    for name, (value, override) in {name: (value, override) for name, value, override in given}.items():
        # A later override may change fields of a section, replace null, or give the setting again or its alternative.
        if value is None or isinstance(value, dict) or any(name.split(".")[-1] in pair for pair in ALTERNATIVES):
            continue
        if within(tree.values, name.split(".")) != value:
            problems.append(
                f"{override!r}: is overwritten by a later override (a change of method or kind resets its section); "
                "reorder or remove one"
            )
    return problems


def as_yaml(value: Any) -> str:
    """The value of a setting on one line, as it is written in a file or an override."""
    if isinstance(value, str | float | int) and not isinstance(value, bool):
        return str(value)
    return dump_yaml(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def within(value: Any, parts: Iterable[str]) -> Any:
    """A field of nested dictionaries; None if it does not exist."""
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _change(tree: _Tree, name: str, value: Any, override: str, *, whole: bool = False) -> list[str]:
    """Sets a field. A mapping is merged into its section, or replaces it if `whole`."""
    sections = name.split(".")[:-1]
    at: Any = tree.values
    for depth, section in enumerate(sections):
        at = at.get(section)
        if at is None:
            break
        if not isinstance(at, dict):
            return [f"{override!r}: {'.'.join(sections[: depth + 1])} is {at!r}, not a section with fields"]
    if whole and isinstance(value, dict):
        tree.values = _merge(tree.values, _nested(name, None))
    tree.values = _merge(tree.values, _nested(name, value))
    _place_override(tree, name, value)
    return []


def _place_override(tree: _Tree, name: str, value: Any) -> None:
    """Records that a field, and all that is in its value, was written in an override."""
    tree.places[name] = "override"
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        _place_override(tree, f"{name}.{key}", each)


def _nested(name: str, value: Any) -> dict[str, Any]:
    """A value inside the nested dictionaries of its field path."""
    for part in reversed(name.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _expand_paths(tree: _Tree, origin: str) -> list[str]:
    problems = []
    for name in PATH_FIELDS:
        *sections, last = name.split(".")
        section = within(tree.values, sections)
        if not isinstance(section, dict):
            continue
        given = section.get(last)
        texts: list[Any] = given if isinstance(given, list) else [given]
        if not all(isinstance(text, str) for text in texts):
            continue
        missing = [(var, text) for text in texts for var in re.findall(r"\$\{(\w+)\}", text) if var not in os.environ]
        if missing:
            (variable, text), where = missing[0], _place(name, tree, origin)
            problems.append(f"{where}: the environment variable {variable} is not set, got {text!r}; set it")
            continue
        paths = [expanded(text) for text in texts]
        section[last] = paths if isinstance(given, list) else paths[0]
    return problems


def expanded(path: str) -> str:
    """A path with `~` and `${VAR}` expanded; variables that are not set stay as they are."""
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda m: os.environ.get(m[1], m[0]), path))


def _place(name: str, tree: _Tree, origin: str) -> str:
    """`file:line: field`; for a field that is not in the file, the line of the innermost section that is."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = tree.places.get(".".join(parts[:length]))
        if place is not None:
            return f"{place}: {name}"
    return f"{origin}: {name}" if name else origin
