"""A command line of the original research scripts, taken apart as they did."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

from raypp.errors import ConfigError
from raypp.original.options import OPTIONS


class _Parser(argparse.ArgumentParser):
    """Takes a script's options as argparse did there, abbreviations included."""

    def __init__(self, script: str) -> None:
        super().__init__(prog=script, add_help=False, argument_default=argparse.SUPPRESS)
        for option in OPTIONS[script]:
            if option.is_flag:
                self.add_argument(f"--{option.name}", action="store_false" if option.default else "store_true")
            else:
                kind = option.type if option.default is None else type(option.default)
                self.add_argument(f"--{option.name}", type=kind, choices=option.choices or None)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


@dataclass(frozen=True)
class OriginalCommand:
    """A command line of one of the scripts that train, taken apart."""

    script: str
    given: dict[str, Any]
    """Options that stand in it, by name."""
    processes: int | None
    """Of the launcher, over all nodes; None without one."""

    @classmethod
    def parse(cls, command_line: str) -> OriginalCommand:
        """Takes a command line apart: launcher, script and options, as it would be typed in a shell.

        Raises:
            ConfigError: no script that is known, or one that trains nothing; an unknown option, with the nearest; a
                value of another type; processes of the launcher that are not a number.
        """
        try:
            words = shlex.split(re.sub(r"\\\r?\n", " ", command_line))
            words = [re.sub(r"\$(\w+)", r"${\1}", word) for word in words]  # as experiment files spell variables
        except ValueError as error:
            raise ConfigError(f"not a command line: {error}") from error
        names = [PurePosixPath(word).name for word in words]
        script = next((name for name in names if name in OPTIONS), None)
        if script is None:
            raise ConfigError(f"names none of the scripts {', '.join(OPTIONS)}")
        if not any(option.name in ("output_dir", "dump_path") for option in OPTIONS[script]):
            uses = dict.fromkeys(o.place for o in OPTIONS[script] if o.place)
            raise ConfigError(f"{script} trains nothing; what it did is `{'`, `'.join(uses)}`")
        at = names.index(script)
        known, unknown = _Parser(script).parse_known_args(words[at + 1 :])
        if unknown:
            named = [word for word in unknown if word.startswith("-")]  # what follows is a value of one of these
            raise ConfigError([_unknown(word, script) for word in named or unknown])
        return cls(script, vars(known), _processes(words[:at]))

    def __getitem__(self, name: str) -> Any:
        """The value of an option: given, or the script's default."""
        options = {option.name: option for option in OPTIONS[self.script]}
        return self.given.get(name, options[name].default)


def _unknown(word: str, script: str) -> str:
    name = word.split("=")[0]
    if not name.startswith("-"):
        return f"{script} takes no argument {word!r}"
    near = difflib.get_close_matches(name.lstrip("-"), [option.name for option in OPTIONS[script]], n=1, cutoff=0.0)
    return f"{script} has no option {name}; the nearest is --{near[0]}"


def _processes(launcher: Sequence[str]) -> int | None:
    """How many processes torch's launcher starts: of each node, times the nodes; None where it is told neither."""
    numbers, problems = {"nproc_per_node": 1, "nnodes": 1}, []
    given = re.findall(r"--(nproc[-_]per[-_]node|nnodes)(?:[= ](\S*)|$)", " ".join(launcher))
    for name, value in given:
        if re.fullmatch(r"[1-9]\d*", value):
            numbers[name.replace("-", "_")] = int(value)
        else:  # a variable, `gpu`, a range: what it is shows only where the command runs, and the batch follows from it
            problems.append(f"--{name}: give a number, from 1, got {value!r}")
    if problems:
        raise ConfigError(problems)
    return numbers["nproc_per_node"] * numbers["nnodes"] if given else None
