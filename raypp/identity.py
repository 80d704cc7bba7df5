"""What determines a run's result, hashed: runs with the same settings and the same input content are the same run.

Left out is what changes nothing: names, workers, storage, tracking, where a file lies. Library versions are recorded
beside the run and a change is warned of. A setting at its default is left out, too, so that a setting added with a
default that means "as before" leaves the runs before it what they are; the defaults themselves belong to RUN_FORMAT.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypp.config import Experiment, Settings

# Raised when the same settings would give other numbers than before, and when a setting's default changes: what is left
# to a default would not be told from what was left to the old one (tests/test_identity.py holds the defaults).
# 4: fisher's scores count a batch by its rows (a language model's: by its targets); scores of threshold start at
# 2.197, no longer at 0.
RUN_FORMAT = 4
RECORDED_PACKAGES = ("raypp", "torch", "transformers", "tokenizers", "ray", "datasets", "numpy", "wandb")


def run_identity(
    experiment: Experiment, inputs: Mapping[str, Any], micro_batches: int, teacher: str | None
) -> dict[str, Any]:
    """Everything that determines the result, as JSON values.

    Args:
        inputs: fingerprints of the input's content by role (splits, student).
        teacher: the teacher's own hash or fingerprint.
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
        "train": {**_chosen(experiment.train), "micro_batches": micro_batches},
        "evaluation": _chosen(experiment.evaluation),
    }


def _chosen(section: Settings) -> dict[str, Any]:
    """What of a section is not at its default: {} for a section of defaults, which is not the same as no section."""
    return section.model_dump(mode="json", exclude_defaults=True)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()


def run_name(experiment: Experiment, digest: str) -> str:
    """Readable first, unique after: `topk-0.15-3f9a2c1d`."""
    pruning = experiment.pruning
    if pruning is None:
        return f"dense-{digest[:8]}"
    level = pruning.requested_density
    if level is None:
        level = getattr(pruning, "final_threshold", None)
    return "-".join([pruning.method.replace("_", "-"), *([f"{level:g}"] if level is not None else []), digest[:8]])


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything whose change may change a result, and which raypp it was: the commit of its checkout, or a
    hash of its sources where there is none (an image, a job's working folder)."""
    recorded = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        recorded[package] = importlib.metadata.version(package)
    commit = _git_commit()
    return recorded | ({"git_commit": commit} if commit else {"raypp_sources": _source_hash()})


def _source_hash() -> str:
    """Of all of raypp's own files: the same wherever they lie."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _git_commit() -> str | None:
    """The commit of raypp's own checkout, with a mark if it was changed; None if it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
