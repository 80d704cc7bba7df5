"""What takes seconds to import is imported when it is needed: a command's start does not wait for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {"torch", "transformers", "ray", "matplotlib", "wandb", "optuna", "datasets"}


@pytest.mark.parametrize(
    ("modules", "imported"),
    [
        ("raypp, raypp.cli", set()),
        ("raypp.commands.show", {"torch"}),
        # A worker's first step waits for these.
        ("raypp.training.loop", {"torch"}),
    ],
)
def test_modules_import_no_more_than_they_need_at_once(modules: str, imported: set[str]) -> None:
    assert slow_imports(f"import sys, {modules}; print(*sys.modules)") == imported


def test_training_imports_torch_and_transformers_while_ray_starts() -> None:
    program = (
        "import sys, raypp.cli, raypp.cluster.launch as launch\n"
        "launch.train = lambda *given, **named: sys.exit(print(*sys.modules))\n"
        "raypp.cli.main(['train', 'experiments/quickstart.yaml'])"
    )
    assert slow_imports(program) == set()


def slow_imports(program: str) -> set[str]:
    """Those of the modules whose names the program prints that take long to import."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    modules = set(done.stdout.split())
    assert "raypp" in modules
    return SLOW & modules
