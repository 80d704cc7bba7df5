"""A sweep from one command, on a real encoder: its trials, its front, and a second call that finds all of it done."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from raypp.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def experiment(tmp_path: Path, minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # relative paths start here, also for trials, which Tune moves elsewhere
    (tmp_path / "encoder").symlink_to(minilm_dir)
    path = tmp_path / "ladder.yaml"
    values = {
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 32},
        "student": {"model": "encoder"},
        "pruning": {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 4, "batch_size": 8},
        "cluster": {"storage": "runs"},
        "tracking": {"wandb": "off"},
        "sweep": {"space": {"pruning.final_density": {"choice": [0.5, 0.2]}}, "seeds": 2},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_sweep_ends_with_its_front_and_goes_on_with_what_is_unfinished(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(experiment), "--dry-run"]) == 0
    assert "4 trials" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "ladder").exists()

    assert main(["sweep", str(experiment)]) == 0
    shown = capsys.readouterr()
    assert "4 of 4 trials" in " ".join(shown.out.split())
    folder = tmp_path / "runs" / "ladder"
    (swept,) = folder.glob("sweep-*")
    runs = [path for path in folder.iterdir() if path != swept]
    assert len(runs) == 4
    rows = list(csv.DictReader((swept / "front.csv").read_text().splitlines()))
    assert [float(row["density"]) for row in rows] == pytest.approx([0.5, 0.2], abs=1e-4)
    assert [row["trials"] for row in rows] == ["2", "2"]
    assert (swept / "front.png").stat().st_size > 10_000
    for run in json.loads((swept / "best.json").read_text()).values():
        AutoModelForSequenceClassification.from_pretrained(Path(run) / "model")
    before = json.loads((swept / "result.json").read_text())
    assert before["counts"] == {"finished": 4, "stopped": 0, "failed": 0}

    (runs[0] / "result.json").unlink()  # as if it had been killed before its end
    untouched = (runs[1] / "result.json").stat().st_mtime_ns
    assert main(["sweep", str(experiment)]) == 0
    assert (runs[1] / "result.json").stat().st_mtime_ns == untouched
    assert json.loads((swept / "result.json").read_text())["front"] == before["front"]
    capsys.readouterr()
    assert main(["sweep", str(experiment)]) == 0
    assert "trials:  finished before" in capsys.readouterr().err


def test_a_single_run_of_a_sweep_is_refused(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(experiment)]) == 2
    assert "run by `raypp sweep`" in capsys.readouterr().err
