"""A sweep whose command is killed: the same command goes on to the same front."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from whole_runs import TEST_SECONDS, assert_tidy, run_command, started, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]

EXPERIMENT = """
name: ladder
task: sentiment
data: {{source: {{kind: synthetic, train_rows: 160, dev_rows: 48}}, max_length: 32}}
student: {{model: "{model}"}}
pruning: {{method: magnitude, final_density: 0.5, initial_warmup: 0, final_warmup: 1}}
train: {{max_steps: 8, batch_size: 8}}
evaluation: {{every_steps: 2}}
cluster: {{storage: "{storage}"}}
tracking: {{wandb: off}}
sweep:
  concurrent: 1
"""
SEARCHES = {
    "grid": """
  stopping: {}
  space:
    pruning.final_density: {choice: [0.5, 0.1]}
    train.learning_rate: {choice: [1.0e-4, 1.0e-6]}
""",
    "optuna": """
  search: optuna
  trials: 6
  space:
    pruning.final_density: {quniform: [0.1, 0.5, 0.1]}
    train.learning_rate: {loguniform: [1.0e-6, 1.0e-3]}
""",
}


def written(folder: Path, search: str, model: Path) -> Path:
    """The file of an experiment with a storage in this folder."""
    folder.mkdir()
    path = folder / "ladder.yaml"
    path.write_text(EXPERIMENT.format(model=model, storage=folder / "runs") + SEARCHES[search])
    return path


def is_in_the_middle(folder: Path, finished: int) -> bool:
    """Whether so many runs are finished, and another has a checkpoint."""
    runs = [path for path in folder.glob("runs/ladder/*") if not path.name.startswith("sweep-")]
    done = [path for path in runs if (path / "result.json").is_file()]
    begun = [path for path in runs if path not in done and list(path.glob("checkpoints/step-*/manifest.json"))]
    return len(done) >= finished and bool(begun)


def outcome(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The front and the trials of a sweep, without what differs from one folder to another."""
    (file,) = folder.glob("runs/ladder/sweep-*/result.json")
    result = json.loads(file.read_text())
    places = ("path", "run", "seconds")
    return (
        [{key: value for key, value in point.items() if key not in places} for point in result["front"]],
        [{key: value for key, value in trial.items() if key not in places} for trial in result["trials"]],
    )


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_a_killed_command_changes_nothing(search: str, tmp_path: Path, minilm_dir: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run_command("sweep", written(undisturbed, search, minilm_dir))
    experiment = written(killed, search, minilm_dir)
    with started("sweep", experiment) as command:
        wait_for(lambda: is_in_the_middle(killed, 1), "a trial to be finished and another to be under way")
        command.process.kill()
        command.end()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/ladder/*/result.json")}
    (noted,) = killed.glob("runs/ladder/sweep-*/seconds.json")
    before = json.loads(noted.read_text())["seconds"]
    began = time.monotonic()
    run_command("sweep", experiment)
    (result,) = killed.glob("runs/ladder/sweep-*/result.json")
    spent = json.loads(result.read_text())["seconds"]
    assert before < spent < before + time.monotonic() - began, "the seconds of the killed command count as well"
    assert outcome(killed) == outcome(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished trials are taken as they are"
    assert_tidy(killed / "runs")
