"""The settings by field path, as messages, overrides, sweeps and the page of settings need them."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from raypp.config.experiment import Experiment
from raypp.config.pruning import method_name

# The fields that are paths or may be paths, in which `~` and `${VAR}` are expanded.
PATH_FIELDS = (
    "data.source.directory",
    "data.source.train",
    "data.source.dev",
    "data.source.test",
    "data.source.files",
    "data.source.dev_files",
    "student.config",
    "student.model",
    "teacher.model",
    "cluster.storage",
    "cluster.store",
)
DISCRIMINATORS = ("method", "kind")


def is_setting(path: str) -> bool:
    """Whether the field path exists under some method and kind."""
    here: list[Any] = [Experiment]
    for part in path.split("."):
        fields = [model.model_fields for each in here for model in models_in(each)]
        inside = [known[part].annotation for known in fields if part in known]
        if not inside:  # inside a mapping, the user chooses the keys
            return any(get_origin(each) is dict for annotation in here for each in (annotation, *get_args(annotation)))
        here = inside
    return True


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """All classes of settings that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def field_path(loc: tuple[Any, ...]) -> tuple[str, ...]:
    """pydantic's location as the names of a field path, without pydantic's names of union members. A name may have
    dots: the keys of `sweep.space` are field paths themselves."""
    names: list[str] = []
    here: Any = Experiment
    for part in loc:
        members = _members(here)
        if len(members) > 1:
            here = _member(str(part), members)
            continue
        names.append(str(part))
        here = _inside(here, part)
    return tuple(names)


def _members(annotation: Any) -> list[Any]:
    """What a value may be, apart from None: the members of a union, or the annotation alone."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [] if annotation is NoneType else [annotation]


def _member(label: str, members: list[Any]) -> Any:
    """The member of a union that pydantic gives this label: a method or kind, or a text that contains the name of a
    class or type; None if there is none."""
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    chosen = [
        m
        for m in models
        if any(_tags(m, d) and label in get_args(m.model_fields[d].annotation) for d in DISCRIMINATORS)
    ]
    named = [m for m in members if getattr(m, "__name__", "?") in label]
    return next(iter([*chosen, *named]), None)


def _inside(annotation: Any, key: Any) -> Any:
    """The annotation of what has this key in a section, a mapping or a list; None if it is not known."""
    for member in _members(annotation):
        if get_origin(member) in (dict, tuple, list):
            return get_args(member)[1 if get_origin(member) is dict else 0]
        if isinstance(member, type) and issubclass(member, BaseModel) and key in member.model_fields:
            return member.model_fields[key].annotation
    return None


def _tags(model: type[BaseModel], name: str) -> bool:
    return name in model.model_fields and bool(get_args(model.model_fields[name].annotation))


def fields_at(section: Iterable[str], values: Any) -> list[str]:
    """The field names allowed in a section; if it has a method or kind, those of the chosen one.

    Args:
        section: names of a field path.
        values: of the whole experiment.
    """
    here: Any = Experiment
    for key in section:
        values = values.get(key) if isinstance(values, dict) else None
        here = _inside(here, key)
    models = models_in(here)
    for name in DISCRIMINATORS:
        chosen = values.get(name) if isinstance(values, dict) else None
        chosen = method_name(chosen) if isinstance(chosen, str) else None
        chosen_models = [m for m in models if _tags(m, name) and chosen in get_args(m.model_fields[name].annotation)]
        models = chosen_models or models
    return sorted({name for model in models for name in model.model_fields})
