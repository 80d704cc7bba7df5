"""YAML as raypp reads and writes it: YAML 1.2's scalars, without the surprises of 1.1.

`3e-5` is a number, `010` is ten, and `off`, `1:30` and `2026-01-31` are text. `load_yaml` reads what `dump_yaml` wrote
as it was.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_RESOLVERS = {  # of YAML 1.2, by the kind of value: the form of its text, and the first characters
    "bool": (r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "float": (
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$",
        "-+.0123456789",
    ),
}


class Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader with YAML 1.2's scalars."""


class _Dumper(yaml.SafeDumper):
    """Quotes all text that YAML 1.1 or 1.2 would read as something else."""


Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if not each[0].endswith((":timestamp", ":float", ":int", ":bool"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_form, _first) in _RESOLVERS.items():
    for _each in (Loader, _Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_form), list(_first))
# PyYAML's own constructor reads a leading 0 as octal.
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _whole_number(node))


def _whole_number(node: Any) -> int:
    try:
        return int(node.value)
    except ValueError:
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value!r} is not a whole number", node.start_mark
        ) from None


def dump_yaml(value: Any, **options: Any) -> str:
    """Plain values as YAML, in their order. `options` are those of `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


def load_yaml(text: str) -> Any:
    """The plain values of a YAML document.

    Raises:
        yaml.YAMLError: it is not valid.
    """
    return yaml.load(text, Loader)
