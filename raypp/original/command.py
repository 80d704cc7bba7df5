"""Parses a command line of the original research scripts as the scripts did."""

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
    """A parser of a script's options that behaves like the script's own, including abbreviations."""

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
    """The parsed command line of one of the scripts that train."""

    script: str
    given: dict[str, Any]
    """The given options by name."""
    processes: int | None
    """Number of processes of the launcher, over all nodes; None without a launcher."""

    @classmethod
    def parse(cls, command_line: str) -> OriginalCommand:
        """Parses a command line as it is typed in a shell: launcher, script and options.

        Raises:
            ConfigError: the script is unknown or does not train; an option is unknown; a value has another type; the
                launcher's number of processes is not a number.
        """
        try:
            words = shlex.split(re.sub(r"\\\r?\n", " ", command_line))
            words = [re.sub(r"\$(\w+)", r"${\1}", word) for word in words]  # the form of variables in experiment files
        except ValueError as error:
            raise ConfigError(f"not a command line: {error}") from error
        names = [PurePosixPath(word).name for word in words]
        script = next((name for name in names if name in OPTIONS), None)
        if script is None:
            raise ConfigError(f"the command line has none of the scripts {', '.join(OPTIONS)}")
        if not any(option.name in ("output_dir", "dump_path") for option in OPTIONS[script]):
            uses = dict.fromkeys(o.place for o in OPTIONS[script] if o.place)
            raise ConfigError(f"{script} trains nothing; use `{'`, `'.join(uses)}` instead")
        at = names.index(script)
        known, unknown = _Parser(script).parse_known_args(words[at + 1 :])
        if unknown:
            named = [word for word in unknown if word.startswith("-")]  # the other words are values of these
            raise ConfigError([_unknown(word, script) for word in named or unknown])
        return cls(script, vars(known), _processes(words[:at]))

    def __getitem__(self, name: str) -> Any:
        """The value of an option: the given one or the script's default."""
        options = {option.name: option for option in OPTIONS[self.script]}
        return self.given.get(name, options[name].default)


def _unknown(word: str, script: str) -> str:
    name = word.split("=")[0]
    if not name.startswith("-"):
        return f"{script} takes no argument {word!r}"
    near = difflib.get_close_matches(name.lstrip("-"), [option.name for option in OPTIONS[script]], n=1, cutoff=0.0)
    return f"{script} has no option {name}; did you mean --{near[0]}?"


def _processes(launcher: Sequence[str]) -> int | None:
    """The number of processes that torch's launcher starts: processes per node times nodes; None if neither is
    given."""
    numbers, problems = {"nproc_per_node": 1, "nnodes": 1}, []
    given = re.findall(r"--(nproc[-_]per[-_]node|nnodes)(?:[= ](\S*)|$)", " ".join(launcher))
    for name, value in given:
        if re.fullmatch(r"[1-9]\d*", value):
            numbers[name.replace("-", "_")] = int(value)
        else:  # a variable, `gpu` or a range is only known where the command runs, but determines the batch size
            problems.append(f"--{name}: must be a number of at least 1, got {value!r}")
    if problems:
        raise ConfigError(problems)
    return numbers["nproc_per_node"] * numbers["nnodes"] if given else None
