"""A real sweep, recorded offline: what W&B is told of it; and the report of it and of one of its trials."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from wandb_files import read_run

import raypp
from raypp.cli import main
from raypp.figures.run import FIGURES, MAIN_FIGURES
from raypp.pruning.weight_statistics import STATISTICS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def experiment(tmp_path: Path, minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ladder.yaml"
    values = {
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "pruning": {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 4, "batch_size": 8},
        "tracking": {"wandb": "offline", "project": "swept"},
        "sweep": {"space": {"pruning.final_density": {"choice": [0.5, 0.2]}}},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_sweep_is_one_group_of_its_trials_and_its_front_and_has_a_report(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(experiment)]) == 0
    shown = capsys.readouterr()
    (sweep,) = (tmp_path / "runs" / "ladder").glob("sweep-*")
    assert "finished  100%" in shown.err, "a log says what became of a trial"
    assert "best so far of density 0.2" in shown.err
    assert "trials:  2/2  done" in shown.err

    command = f"wandb sync {sweep.parent}/*/wandb/offline-run-*"
    assert command in shown.out
    runs = [read_run(folder) for folder in sorted(sweep.parent.glob("*/wandb/offline-run-*"))]
    assert len(runs) == 3
    assert {run["group"] for run in runs} == {f"ladder/{sweep.name}"}
    assert {run["project"] for run in runs} == {"swept"}
    assert {run["exit_code"] for run in runs} == {0}
    (front,) = [run for run in runs if run["name"] == f"ladder/{sweep.name}/front"]
    trials = {run["config"]["pruning"]["final_density"]: run for run in runs if run is not front}
    result = json.loads((sweep / "result.json").read_text())
    for trial in result["trials"]:
        run = trials[trial["settings"]["pruning.final_density"]]
        assert run["name"] == f"ladder/{trial['run']}"
        assert run["config"]["train"]["max_steps"] == 4
        assert run["summary"]["eval/accuracy"] == pytest.approx(trial["metric"])
        assert run["summary"]["prune/linear_density"] == pytest.approx(trial["density"])
        assert run["history"][-1]["eval/accuracy"] == pytest.approx(trial["metric"])
    assert front["config"]["sweep"]["space"]["pruning.final_density"]["choice"] == [0.5, 0.2]
    assert front["summary"]["best/eval/accuracy"] == max(trial["metric"] for trial in result["trials"])
    (wandb,) = (sweep / "wandb").glob("offline-run-*")
    drawn = {key: value for row in front["history"] for key, value in row.items()}
    table = json.loads((wandb / "files" / drawn["front/table/path"]).read_text())
    assert table["columns"][:2] == ["density", "eval/accuracy"]
    assert [row[0] for row in table["data"]] == pytest.approx([0.5, 0.2], abs=1e-4)
    assert (wandb / "files" / drawn["front/figure/path"]).read_bytes() == (sweep / "front.png").read_bytes()

    assert main(["sweep", str(experiment)]) == 0, "all is finished: nothing is recorded again"
    assert [wandb] == list((sweep / "wandb").glob("offline-run-*"))
    assert command in capsys.readouterr().out

    run = Path(result["trials"][0]["path"])
    assert main(["report", str(sweep)]) == 0
    assert all(trial["run"] in (sweep / "report.html").read_text() for trial in result["trials"])
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert {file.name for file in (run / "figures").iterdir()} == {
        STATISTICS,
        *(f"{name}.png" for name in MAIN_FIGURES),
    }
    assert text.count("data:image/png") == len(raypp.draw(run)) - 1 == len(FIGURES) - 1, "all but scores"
    assert "CPU-hours" in text
    assert main(["report", str(run), "--save", "run.svg"]) == 0
    assert (tmp_path / "run.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.slow
def test_trials_draw_the_main_figures_unless_all_are_asked_for(experiment: Path, tmp_path: Path) -> None:
    for density, figures in ((0.5, "auto"), (0.4, "all")):
        space = f"sweep.space={{pruning.final_density: {{choice: [{density}]}}}}"
        assert main(["sweep", str(experiment), space, f"tracking.figures={figures}", "tracking.wandb=off"]) == 0
    drawn_by = Counter(file.parent for file in (tmp_path / "runs" / "ladder").glob("*/figures/*.png"))
    assert sorted(drawn_by.values()) == [len(MAIN_FIGURES), len(FIGURES) - 1]
