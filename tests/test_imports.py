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
        # Ray starts while torch and transformers are imported.
        ("raypp.load_config, raypp.cluster.launch, raypp.display.progress", set()),
        ("raypp.commands.show", {"torch"}),
        # A worker's first step waits for these.
        ("raypp.training.loop", {"torch"}),
    ],
)
def test_modules_import_no_more_than_they_need_at_once(modules: str, imported: set[str]) -> None:
    program = f"import sys, {modules}; print(*sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert SLOW & set(done.stdout.split()) == imported
