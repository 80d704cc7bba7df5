"""The base class of all sections of settings, and the pairs of settings that are alternatives to each other."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

Density = Annotated[float, Field(gt=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Names = Annotated[tuple[str, ...], Strict(False)]
LayerNumber = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """Base of every section: frozen, strict, no unknown keys. The docstring under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# Pairs of settings of which at most one may be given, and the value of the first if neither is.
ALTERNATIVES: dict[tuple[str, str], float] = {
    ("epochs", "max_steps"): 3.0,
    ("batch_size", "batch_tokens"): 32,
    ("warmup_fraction", "warmup_steps"): 0.1,
    ("every_epochs", "every_steps"): 1.0,
}


def one_of_each(model: type[BaseModel], values: Any) -> Any:
    """The values, completed with the default of each pair of alternatives; ValueError if both of a pair are given."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    for (first, second), default in ALTERNATIVES.items():
        if first not in model.model_fields:
            continue
        given = [name for name in (first, second) if values.get(name) is not None]
        if len(given) == 2:
            raise ValueError(
                f"give {first} or {second}, not both; got {first}={values[first]} and {second}={values[second]}"
            )
        if not given:
            values[first] = default
    return values
