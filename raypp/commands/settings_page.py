"""`docs/settings.md`: every setting of an experiment, from the docstrings of `raypp/config/`.

    python -m raypp.commands.settings_page > docs/settings.md

A test fails if the page and the settings differ.
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raypp.config import ALTERNATIVES, Experiment
from raypp.config.fields import DISCRIMINATORS, PATH_FIELDS, models_in
from raypp.load_config import as_yaml

WIDTH = 120
SECTION = "SECTION"  # a placeholder for the link to a section, whose title is filled in later

INTRODUCTION = """
An experiment is one YAML file. `raypp show FILE` prints it with all defaults, the run folder, the number of steps and
the pruned layers. Before anything runs, raypp refuses unknown keys, values of a wrong type or out of range, and
settings that contradict each other. One message lists every problem with its file and line.

**`base: other.yaml`** makes a file inherit all settings of another file, which may have a base of its own. The path is
relative to the file that contains it. Sections are merged key by key; all other values, lists included, replace those
of the base, and `null` removes a section. If {discriminators} changes, the section of the base is dropped, because its
fields belong to the old one. Some settings are alternatives ({alternatives}): giving one replaces the other of the
base, and giving both in one file is refused.

**Overrides** follow the file on the command line as `section.field=value`, and take precedence over it:
`train.max_steps=100`, `tracking.wandb=off`, `pruning.layers.exclude='[attention]'`, `data.source='{{kind: hub}}'`. The
value is YAML; a mapping is merged into its section. Overrides are applied in the given order: of two of one setting, or
of two alternatives, the last one counts. An override is refused if a later one removes its section (a change of
`method` or `kind`, for example).

**Paths.** `~` and `${{VAR}}` are expanded in {paths}; a variable that is not set is an error. Relative paths start at
the working directory, not at the folder of the file. Folders and files of `data.source`, `cluster.storage` and
`cluster.store` may also be URIs (`s3://`, `gs://`), with or without a cluster.
"""


@dataclass(frozen=True)
class SettingsSection:
    """One section of an experiment file: a class of settings, or several from which `method` or `kind` selects one."""

    path: str
    """Its field path, such as `pruning.penalty`; empty for the file itself."""
    purpose: str
    """The description of the setting that contains it."""
    models: tuple[type[BaseModel], ...]

    @property
    def title(self) -> str:
        return self.path or "The file"

    @property
    def level(self) -> int:
        """The level of its heading."""
        return 2 + self.path.removesuffix(".*").count(".")


def settings_page() -> str:
    """The page, as Markdown."""
    sections = _sections()
    places = {model: section for section in sections for model in section.models}
    blocks = ["# Every setting", *_introduction()]
    for section in sections:
        blocks += [_heading(section.level, section.title), *_settings_of(section, places)]
    blocks.append(
        "This page is made from `raypp/config/`: `python -m raypp.commands.settings_page > docs/settings.md`."
    )
    return "\n\n".join(blocks) + "\n"


def _introduction() -> Iterator[str]:
    text = INTRODUCTION.format(
        discriminators=" or ".join(f"`{name}`" for name in DISCRIMINATORS),
        alternatives="; ".join(" and ".join(f"`{name}`" for name in pair) for pair in ALTERNATIVES),
        paths=_listed([f"`{name}`" for name in PATH_FIELDS], "and"),
    )
    return map(_wrapped, _paragraphs(text))


def _sections() -> list[SettingsSection]:
    """All sections, each before its subsections. A class used in several places is described at the outermost one."""
    found = [SettingsSection("", "", (Experiment,))]
    known: set[type[BaseModel]] = {Experiment}
    for section in found:  # the list grows during the loop: a breadth-first search
        for model in section.models:
            for name, info in model.model_fields.items():
                models = tuple(each for each in models_in(info.annotation) if each not in known)
                if models:
                    known.update(models)
                    path = f"{section.path}.{name}".strip(".") + ".*" * _is_mapping(info.annotation)
                    found.append(SettingsSection(path, info.description or "", models))
    tops = [section.path for section in found if section.level == 2]
    return sorted(found, key=lambda section: tops.index(section.path.split(".")[0]))


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _settings_of(section: SettingsSection, places: Mapping[type[BaseModel], SettingsSection]) -> Iterator[str]:
    """A section's description and settings; if it has several classes, first the settings that all of them share."""
    if len(section.models) == 1:
        yield from _described(section.models[0], section.models[0].model_fields, places)
        return
    yield _wrapped(section.purpose)
    common = _common_base(section.models)
    shared = {name: _entry(common, name, places) for name in common.model_fields}
    if shared:
        yield from _described(common, shared, places)
    for model in section.models:
        yield _heading(section.level + 1, _which(section, model))
        own = [name for name in _nearest_first(model) if _entry(model, name, places) != shared.get(name)]
        yield from _described(model, [name for name in own if not _is_chosen_by(model, name)], places)


def _common_base(models: tuple[type[BaseModel], ...]) -> type[BaseModel]:
    """The nearest common base class."""
    return next(base for base in models[0].__mro__ if all(issubclass(model, base) for model in models))


def _nearest_first(model: type[BaseModel]) -> list[str]:
    """The settings of a class, its own before inherited ones."""
    names = [name for base in model.__mro__ for name in inspect.get_annotations(base) if name in model.model_fields]
    return list(dict.fromkeys(names))


def _which(section: SettingsSection, model: type[BaseModel]) -> str:
    """The heading of one of several classes, such as `pruning, method: topk`."""
    name = next(name for name in DISCRIMINATORS if name in model.model_fields)
    return f"{section.path}, {name}: {_listed(get_args(model.model_fields[name].annotation), 'or')}"


def _is_chosen_by(model: type[BaseModel], name: str) -> bool:
    """Whether the heading already gives the setting: it has a single value, which selects the class."""
    return name in DISCRIMINATORS and len(get_args(model.model_fields[name].annotation)) == 1


def _described(
    model: type[BaseModel], names: Iterable[str], places: Mapping[type[BaseModel], SettingsSection]
) -> Iterator[str]:
    yield from map(_wrapped, _paragraphs(inspect.getdoc(model) or ""))
    yield "\n".join(_entry(model, name, places) for name in names)


# --- one setting -----------------------------------------------------------------------------------------------------


def _entry(model: type[BaseModel], name: str, places: Mapping[type[BaseModel], SettingsSection]) -> str:
    """A setting as a list item: allowed values, default, meaning."""
    info = model.model_fields[name]
    allowed = _listed(_allowed(_schemas(model)[name]), "or")
    for held in models_in(info.annotation)[:1]:
        title = places[held].title
        allowed = allowed.replace(SECTION, f"section [{title}](#{_anchor(title)})")
    first, *others = _paragraphs(info.description or "")
    lines = [_wrapped(f"- **`{name}`**: {allowed}{_default(info)}.", hanging="  "), _wrapped(first, "  ")]
    return "\n".join([*lines, *(f"\n{_wrapped(paragraph, '  ')}" for paragraph in others)])


@functools.cache
def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of a class's settings."""
    schemas: dict[str, Any] = model.model_json_schema()["properties"]
    return schemas


def _default(info: FieldInfo) -> str:
    """The default in words. The default of a section is shown only as far as it differs from its settings' own
    defaults."""
    if info.is_required():
        return "; required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True) if info.default_factory is None else {}
        if not value:
            return ""
    return f"; default `{as_yaml(value)}`"


def _allowed(schema: Mapping[str, Any]) -> list[str]:
    """The alternatives that a JSON schema allows, in words."""
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return list(dict.fromkeys(each for alternative in alternatives for each in _allowed(alternative)))
    if "$ref" in schema:
        return [SECTION]
    if "const" in schema:
        return [f"`{schema['const']}`"]
    if "enum" in schema:
        return [f"`{value}`" for value in schema["enum"]]
    match schema.get("type"):
        case "null":
            return ["`null`"]
        case "boolean":
            return ["`true`", "`false`"]
        case "integer":
            return [f"whole number{_bounds(schema)}"]
        case "number":
            return [f"number{_bounds(schema)}"]
        case "string" if "pattern" in schema:
            return [f"text of the form `{schema['pattern']}`"]
        case "string":
            return ["text"]
        case "array" if "prefixItems" in schema:
            return [f"[{', '.join(_listed(_allowed(item), 'or') for item in schema['prefixItems'])}]"]
        case "array":
            return [f"list of {_listed(_allowed(schema['items']), 'or')}"]
        case "object" if isinstance(values := schema.get("additionalProperties"), dict):
            return [f"mapping to {_listed(_allowed(values), 'or')}"]
        case "object":
            return ["mapping"]
        case None:
            return ["anything"]
    raise AssertionError(f"no words for the type of {schema}")


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:g} to {schema['maximum']:g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[name]:.10g}" for name, word in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


# --- Markdown --------------------------------------------------------------------------------------------------------


def _heading(level: int, title: str) -> str:
    return f"{'#' * level} {title}"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _listed(items: Iterable[str], word: str) -> str:
    *others, last = items
    return f"{', '.join(others)} {word} {last}" if others else last


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]


def _wrapped(text: str, indent: str = "", hanging: str = "") -> str:
    """A paragraph in lines. No line breaks inside code or starts with characters that Markdown reads as a list item.

    Args:
        hanging: additional indent of all lines but the first.
    """
    together = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    together = re.sub(r" (?=([-+*]|\d+[.)]) )", "\N{NO-BREAK SPACE}", together)
    lines = textwrap.fill(
        together,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.replace("\N{NO-BREAK SPACE}", " ")


if __name__ == "__main__":
    print(settings_page(), end="")
