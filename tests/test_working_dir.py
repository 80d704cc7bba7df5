"""What `ray job submit --working-dir .` sends to a cluster, by Ray's own packaging."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import GRPC_CPP_MAX_MESSAGE_SIZE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).resolve().parent.parent
LARGE_BYTES = GRPC_CPP_MAX_MESSAGE_SIZE + 1  # one file more than Ray takes in all; a hole on the disk
LEFT_OVER = (
    ".venv/lib/python3.11/site-packages/torch/lib/libtorch_cuda.so",
    ".venv-other/lib/libtorch_cuda.so",
    "runs/mnli/topk-0.15-3f9a2c1d/model/model.safetensors",
    "runs/store/v1/features/1a/part-0.parquet",
    "wandb/offline-run-1/run.wandb",
    ".git/objects/pack/pack-1.pack",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package of a checkout in which somebody has worked."""
    checkout = tmp_path / "checkout"
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    for name in filter(None, listed.stdout.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for name in LEFT_OVER:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        with (checkout / name).open("wb") as file:
            file.truncate(LARGE_BYTES)
    create_package(
        str(checkout), tmp_path / "package.zip", include_gitignore=True, excludes=get_runtime_env_default_excludes()
    )
    return tmp_path / "package.zip"


def test_a_job_brings_the_code_and_the_experiments_and_nothing_large(package: Path, tmp_path: Path) -> None:
    assert package.stat().st_size < 2_000_000, "the code itself is 1.2 MB, and is not compressed"
    with ZipFile(package) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "unpacked")
    assert {"raypp/cli.py", "experiments/sweeps/mnli-density.yaml", "pyproject.toml"} <= set(names)
    assert {name.split("/")[0] for name in names}.isdisjoint(
        {".venv", ".venv-other", "runs", "wandb", ".git", "tests", "docs"}
    )
    # What was sent runs by itself, and goes before a raypp that is installed.
    where = "import raypp, sys; from raypp.cli import main; print(raypp.__file__); sys.exit(main())"
    shown = subprocess.run(
        [sys.executable, "-c", where, "show", "experiments/quickstart.yaml"],
        cwd=tmp_path / "unpacked",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(str(tmp_path / "unpacked"))
    assert "final_density" in shown.stdout
