"""The settings by field path, as messages, overrides, sweeps and the page of settings need them."""

from __future__ import annotations

from typing import Any, get_args, get_origin

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


def field_path(loc: tuple[Any, ...]) -> str:
    """pydantic's location as a field path, without the names of union members, which are not fields."""
    names: list[str] = []
    here: Any = Experiment
    for part in loc:
        models = models_in(here)
        known = {name: info for model in models for name, info in model.model_fields.items()}
        if isinstance(part, str) and part not in known and names and not _is_leaf_key(part, models):
            continue
        names.append(str(part))
        here = known[part].annotation if part in known else None
    return ".".join(names)


def _is_leaf_key(part: str, models: list[type[BaseModel]]) -> bool:
    """Whether `part` is a (misspelt) key that the user wrote, and not pydantic's name for a union member."""
    tags = {get_args(m.model_fields[d].annotation)[0] for m in models for d in DISCRIMINATORS if _tags(m, d)}
    kinds = {"int", "float", "str", "constrained-int", "constrained-str"} | {model.__name__ for model in models}
    return bool(models) and part not in tags and part not in kinds and "[" not in part


def _tags(model: type[BaseModel], name: str) -> bool:
    return name in model.model_fields and bool(get_args(model.model_fields[name].annotation))


def fields_at(section: list[str], values: Any) -> list[str]:
    """The field names allowed in a section; if it has a method or kind, those of the chosen one."""
    here: Any = Experiment
    for key in section:
        values = values.get(key) if isinstance(values, dict) else None
        known = {name: info.annotation for model in models_in(here) for name, info in model.model_fields.items()}
        here = known.get(key)
    models = models_in(here)
    for name in DISCRIMINATORS:
        chosen = values.get(name) if isinstance(values, dict) else None
        chosen = method_name(chosen) if isinstance(chosen, str) else None
        chosen_models = [m for m in models if _tags(m, name) and chosen in get_args(m.model_fields[name].annotation)]
        models = chosen_models or models
    return sorted({name for model in models for name in model.model_fields})
