"""Settings of a pruning method, as an experiment file gives them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from raypp.config import PruningSettings


def settings_of(method: str, **fields: Any) -> PruningSettings:
    adapter: TypeAdapter[PruningSettings] = TypeAdapter(PruningSettings)
    return adapter.validate_python({"method": method, **fields})
