"""The identity of a run: a hash of everything that determines its result.

Two runs with the same settings and the same input content are the same run. The identity leaves out what does not
change the result: names, workers, storage, tracking and the paths of files. Library versions are recorded with the run,
and raypp warns if they change. Settings at their defaults are left out, too: a new setting whose default keeps the old
behaviour then does not change the identity of existing runs. RUN_FORMAT stands for the defaults themselves.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from raypp.config import Experiment, Settings

# Increment it when the same settings give other results than before, and when a default changes, because defaults are
# not part of the identity (tests/test_identity.py has them).
# 5: l0's noise comes from a generator for each chunk; a language model's fisher scores count a batch by its targets.
# 4: fisher's scores count a batch by its rows; scores of threshold start at 2.197 instead of 0.
RUN_FORMAT = 5
RECORDED_PACKAGES = ("raypp", "torch", "transformers", "tokenizers", "ray", "datasets", "numpy", "wandb")


def run_identity(
    experiment: Experiment, inputs: Mapping[str, Any], micro_batches: int, teacher: str | None
) -> dict[str, Any]:
    """Everything that determines the result, as JSON values.

    Args:
        inputs: fingerprints of the input content by role (splits, student).
        teacher: the fingerprint of a given teacher, or the digest of the run that trains it.
    """
    task = experiment.task
    made = experiment.student.model_dump(mode="json", include={"layers", "config", "start"}, exclude_defaults=True)
    window = experiment.data.model_dump(mode="json", include={"window_blocks"}, exclude_defaults=True)
    return {
        **({"student": made} if made else {}),
        **window,
        "format": RUN_FORMAT,
        "task": task if isinstance(task, str) else _chosen(task),
        "max_length": experiment.data.max_length,
        "max_train_rows": experiment.data.max_train_rows,
        **experiment.data.model_dump(include={"stride"}, exclude_defaults=True),
        "inputs": dict(inputs),
        "teacher": teacher,
        "pruning": experiment.pruning and _chosen(experiment.pruning),
        "distillation": experiment.distillation and _chosen(experiment.distillation),
        "train": {**_chosen(experiment.train, without={"log_every_steps"}), "micro_batches": micro_batches},
        "evaluation": _chosen(experiment.evaluation),
    }


def _chosen(section: Settings, without: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """The settings of a section that are not at their defaults. {} is a section of defaults, None is no section."""
    return section.model_dump(mode="json", exclude_defaults=True, exclude=set(without))


def identity_hash(identity: Mapping[str, Any]) -> str:
    """The sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()


def run_name(experiment: Experiment, digest: str) -> str:
    """A readable and unique name: `topk-0.15-3f9a2c1d`."""
    pruning = experiment.pruning
    if pruning is None:
        return f"dense-{digest[:8]}"
    level = pruning.requested_density
    if level is None:
        level = getattr(pruning, "final_threshold", None)
    return "-".join([pruning.method.replace("_", "-"), *([f"{level:g}"] if level is not None else []), digest[:8]])


@functools.cache
def versions() -> dict[str, str]:
    """Versions of all software that may change a result. raypp's own version is the commit of its checkout, or a hash
    of its sources if there is no checkout (in an image, or in a job's working folder)."""
    recorded = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        recorded[package] = importlib.metadata.version(package)
    commit = _git_commit()
    return recorded | ({"git_commit": commit} if commit else {"raypp_sources": _source_hash()})


def _source_hash() -> str:
    """A hash of all files of raypp, the same in any folder."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _git_commit() -> str | None:
    """The commit of raypp's own checkout, marked if files were changed; None if raypp is installed without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
