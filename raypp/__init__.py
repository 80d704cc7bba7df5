"""raypp: small, sparse models from pretrained transformer encoders, on Ray.

    experiment = raypp.load_experiment("experiments/quickstart.yaml", ["train.epochs=1"])
    result = raypp.train(experiment)
    raypp.draw(result["paths"]["run"])["loss"]      # shown in a notebook; .save("loss.svg"), .rgb()

and, for a training loop of your own, without Ray: `raypp.pruning.Pruner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raypp.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from raypp.config import Experiment
    from raypp.figures import Picture

__all__ = ["ConfigError", "RunFailed", "draw", "load_experiment", "sweep", "train"]


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment file; see `raypp.load_config.load_experiment`."""
    from raypp.load_config import load_experiment as load

    return load(path, overrides)


def train(experiment: Experiment, *, fresh: bool = False) -> dict[str, Any]:
    """Runs an experiment and returns its result; see `raypp.cluster.launch.train`."""
    from raypp.cluster.launch import train as run

    return run(experiment, fresh=fresh)


def sweep(experiment: Experiment, *, fresh: bool = False) -> dict[str, Any]:
    """Runs a sweep, or what is left of it, and returns its result; see `raypp.cluster.sweep.sweep`."""
    from raypp.cluster.sweep import sweep as run

    return run(experiment, fresh=fresh)


def draw(reference: str | Path) -> dict[str, Picture]:
    """Every figure of a finished run or sweep by name, which a notebook shows; see `raypp.commands.finished.draw`."""
    from raypp.commands.finished import draw as figures

    return figures(reference)
