"""The W&B key is in the environment and nowhere else: in no run folder, store, log of Ray's, or printed line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from ray_head import short_folder

KEY = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2"
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its logs."""
    with short_folder() as folder:
        yield folder


def holding(folder: Path, word: str) -> list[Path]:
    """Files below a folder whose content or name has the word."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if word.encode() in path.read_bytes() or word in str(path)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("mode", "teacher"),
    [("offline", None), pytest.param("online", {"train": {"max_steps": 2}}, marks=pytest.mark.slow)],
)
def test_the_key_is_in_no_file_and_in_no_line(
    mode: str, teacher: dict[str, Any] | None, tmp_path: Path, minilm_dir: Path, ray_folder: Path
) -> None:
    """Online, the server is not there, and all that W&B says of that is said."""
    values = {
        "name": "secret",
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "teacher": teacher,
        "pruning": {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 4, "batch_size": 8},
        "cluster": {"workers": 0, "storage": str(tmp_path / "work" / "runs")},
        "tracking": {"wandb": mode},
    }
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "secret.yaml").write_text(yaml.safe_dump(values))
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": UNREACHABLE, "RAY_TMPDIR": str(ray_folder)}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "scratch")}
    environment.pop("WANDB_MODE", None)
    environment["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # a new home would have every font looked at
    for name in ("home", "scratch"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-m", "raypp.cli", "train", "secret.yaml", "-v"]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    assert list((tmp_path / "work" / "runs" / "secret").glob("*/wandb/offline-run-*/*.wandb")), "W&B has recorded it"
    assert holding(tmp_path, "magnitude"), "the search finds what is there"
    assert list(ray_folder.rglob("raylet.out")), "Ray has logged"
    assert holding(tmp_path, KEY) == holding(ray_folder, KEY) == []
