"""A sweep from one command, on a real encoder: its trials, its front, and a second call that finds all of it done."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from placement_groups import held
from transformers import AutoModelForSequenceClassification
from wandb_files import read_run
from whole_runs import assert_tidy, wait_for

import raypp
from raypp.cli import main
from raypp.cluster.sweep import sweep
from raypp.events import PhaseAdvanced, TrialAdvanced
from raypp.load_config import load_experiment
from raypp.sweeps.plan import plan_sweep

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
    shown = capsys.readouterr().out
    assert "4 trials" in shown
    assert "each trial: 1 worker with 1 CPU and 0 GPU; 4 trials at a time" in shown
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
    assert (before["built"], before["reused"]) == (
        {"features": 2, "teacher": 0, "logits": 0},
        {"features": 6, "teacher": 0, "logits": 0},
    )
    assert [trial["seed"] for trial in before["trials"]] == [42, 43, 42, 43]
    assert {trial["state"] for trial in before["trials"]} == {"finished"}
    assert {trial["path"] for trial in before["trials"]} == set(map(str, runs))

    resolved = yaml.safe_load((swept / "experiment.yaml").read_text())
    assert resolved["student"]["model"] == str(tmp_path / "encoder")
    assert resolved["cluster"]["storage"] == str(tmp_path / "runs")
    for left in (swept, runs[0]):  # as if the command had been killed when all was finished
        (left / "ray" / "0123").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with contextlib.chdir(tmp_path / "elsewhere"):
        assert main(["sweep", str(swept / "experiment.yaml")]) == 0
    assert "trials:  finished before" in capsys.readouterr().err, "the same sweep, wherever it is started"
    assert_tidy(tmp_path / "runs")

    for left in (swept, runs[1]):  # as if it had been killed under the last trial
        (left / "ray" / "0123").mkdir(parents=True)
    (runs[0] / "result.json").unlink()  # as if it had been killed before its end
    untouched = (runs[1] / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    result = raypp.sweep(raypp.load_experiment(experiment))
    assert capsys.readouterr().out == "", "from Python it returns what the command prints"
    assert result == json.loads((swept / "result.json").read_text())
    assert_tidy(tmp_path / "runs")
    assert (runs[1] / "result.json").stat().st_mtime_ns == untouched
    assert result["front"] == before["front"]
    assert main(["sweep", str(experiment), "--dry-run", "sweep.seeds=3"]) == 0
    shown = capsys.readouterr().out
    assert "6 trials, 2 left" in shown
    assert shown.count("finished") == 4
    assert main(["sweep", str(experiment)]) == 0
    assert "trials:  finished before" in capsys.readouterr().err


def test_a_single_run_of_a_sweep_is_refused(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(experiment)]) == 2
    assert "sweep: run an experiment with a sweep by `raypp sweep`" in capsys.readouterr().err


def sweep_result(storage: Path) -> dict[str, Any]:
    (swept,) = (storage / "ladder").glob("sweep-*")
    return dict(json.loads((swept / "result.json").read_text()))


def accuracies(run: Path) -> dict[float, float]:
    """Accuracy by the part of the run's eight steps."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["step"] / 8: record["eval/accuracy"] for record in records if "eval/accuracy" in record}


def rewrite(experiment: Path, sweep: dict[str, Any], **sections: dict[str, Any]) -> None:
    """Gives an experiment file another sweep, and changes fields of other sections."""
    values = yaml.safe_load(experiment.read_text())
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    experiment.write_text(yaml.safe_dump({**values, "sweep": sweep}))


DENSITY, RATE = "pruning.final_density", "train.learning_rate"


@pytest.fixture
def stopping(experiment: Path) -> Path:
    """A sweep that stops early, one trial at a time, so that what is stopped depends on no timing."""
    space = {DENSITY: {"choice": [0.5, 0.2]}, RATE: {"choice": [1e-4, 1e-6]}}
    sweep = {"space": space, "stopping": {}, "concurrent": 1}
    rewrite(experiment, sweep, train={"max_steps": 8}, evaluation={"every_steps": 2})
    return experiment


@pytest.mark.slow
def test_a_trial_that_others_of_its_density_are_ahead_of_is_stopped_once_and_for_all(
    stopping: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(stopping), "tracking.wandb=offline"]) == 0
    result = sweep_result(tmp_path / "runs")
    # One trial at a time: each is compared with those before it.
    reached: dict[tuple[str, float], list[float]] = {}
    for trial in result["trials"]:
        stopped_at = None
        evaluated = accuracies(Path(trial["path"]))
        for rung in (0.25, 0.5):
            others = reached.setdefault((trial["stratum"], rung), [])
            others.append(evaluated[rung])
            if sum(other > evaluated[rung] for other in others) >= math.ceil(len(others) / 2):
                stopped_at = rung
                break
        assert trial["fraction"] == (stopped_at or 1.0)
        assert trial["state"] == ("finished" if stopped_at is None else "stopped")
        assert trial["metric"] == pytest.approx(evaluated[stopped_at or 1.0])
        if stopped_at is not None:
            assert f"at {stopped_at:.0%} of its steps its metric was {trial['metric']:.4f}" in trial["reason"]
    stopped = [Path(trial["path"]) for trial in result["trials"] if trial["state"] == "stopped"]
    assert stopped, "the test's settings give none"
    assert_tidy(tmp_path / "runs")
    for trial in result["trials"]:
        (recorded,) = Path(trial["path"]).glob("wandb/offline-run-*")
        run = read_run(recorded)
        assert run["exit_code"] == 0, "a trial that is stopped early has not failed"
        assert run["summary"].get("stopped_early", False) == (trial["state"] == "stopped")
    assert result["counts"] == {"finished": 4 - len(stopped), "stopped": len(stopped), "failed": 0}
    assert {trial["stratum"] for trial in result["trials"] if trial["state"] == "finished"} == {
        "density 0.5",
        "density 0.2",
    }
    assert f"{4 - len(stopped)} of 4 trials, {len(stopped)} stopped early" in " ".join(capsys.readouterr().out.split())

    before = [(run / "metrics.jsonl").read_text() for run in stopped]
    assert main(["sweep", str(stopping)]) == 0
    assert "trials:  finished before" in capsys.readouterr().err
    assert [(run / "metrics.jsonl").read_text() for run in stopped] == before
    assert sweep_result(tmp_path / "runs")["trials"] == result["trials"]


@pytest.mark.slow
def test_what_fails_is_tried_again_where_that_may_help_and_the_others_go_on(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # So small an epsilon is 0 in float32: where a gradient is 0, Adam divides by it. The same steps would fail again.
    space = {"train.adam_epsilon": {"choice": [1e-8, 1e-60]}}
    rewrite(experiment, {"space": space, "seeds": 2, "concurrent": 2}, cluster={"max_failures": 1})
    planned = plan_sweep(load_experiment(experiment)).trials
    broken, other, *hopeless = [Path(each.plan.run.path) for each in planned]
    broken.mkdir(parents=True)
    (broken / "checkpoints").write_text("a file, where checkpoints should go")
    assert main(["sweep", str(experiment)]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("is tried again from its last checkpoint") == 1
    assert f"{broken.name} is tried again from its last checkpoint" in shown.err
    assert "raypp: 3 of 4 trials failed" in shown.err
    assert "raypp: the same command resumes" in shown.err
    (reason,) = [line for line in shown.out.splitlines() if line.startswith(f"failed: {broken}: ")]
    assert f"{broken} cannot be written to, or its input cannot be read" in reason
    result = sweep_result(tmp_path / "runs")
    assert [trial["state"] for trial in result["trials"]] == ["failed", "finished", "failed", "failed"]
    for trial in result["trials"][2:]:
        assert "the loss or the gradient is not finite" in trial["reason"]
    assert [trial["fails_again"] for trial in result["trials"]] == [False, False, True, True]
    untouched = (other / "result.json").stat().st_mtime_ns

    (broken / "checkpoints").unlink()
    events: list[Any] = []
    result = sweep(load_experiment(experiment), on_event=events.append)
    assert result["counts"] == {"finished": 2, "stopped": 0, "failed": 2}
    assert (other / "result.json").stat().st_mtime_ns == untouched
    shown_trials = [event for event in events if isinstance(event, TrialAdvanced)]
    assert {event.trial for event in shown_trials} == {run.name for run in (broken, other, *hopeless)}
    assert {event.state for event in shown_trials if event.trial == other.name} == {"finished"}, (
        "shown, and not run again"
    )
    assert main(["sweep", str(experiment)]) == 1
    shown = capsys.readouterr()
    assert "raypp: 2 of 4 trials failed" in shown.err
    assert "raypp: the same command would fail again" in shown.err
    assert "resumes" not in shown.err.partition("2 of 4 trials failed")[2]
    of_mended = [event for event in shown_trials if event.trial == broken.name]
    assert list(dict.fromkeys(event.state for event in of_mended)) == ["waiting", "running", "finished"]
    last = of_mended[-1]
    assert (last.stratum, last.fraction, last.density) == ("density 0.5", 1.0, pytest.approx(0.5, abs=1e-4))
    assert last.metric is not None
    assert last.metric[0] == "eval/accuracy"


class Failing:
    """Fails, in the command's own thread, when a trial has begun to train."""

    def __init__(self) -> None:
        self.trains = False

    def __call__(self, event: Any) -> None:
        self.trains |= isinstance(event, TrialAdvanced) and event.fraction > 0
        if self.trains and isinstance(event, PhaseAdvanced):
            raise OSError("the terminal is gone")


@pytest.mark.slow
def test_a_command_that_fails_under_its_trials_ends_them_first(experiment: Path, tmp_path: Path) -> None:
    """Else Ray would be shut down under Tune's feet, upon which it ends the process."""
    sweep_of_one = {"space": {DENSITY: {"choice": [0.5]}}}
    rewrite(experiment, sweep_of_one, train={"max_steps": 2000}, evaluation={"every_steps": 2})
    with pytest.raises(OSError, match="the terminal is gone"):
        sweep(load_experiment(experiment), on_event=Failing())
    assert not [thread for thread in threading.enumerate() if thread.name == "fit"], "Tune has ended"
    (run,) = (file.parent for file in tmp_path.glob("runs/ladder/*/metrics.jsonl"))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    saved = [int(file.parent.name.removeprefix("step-")) for file in run.glob("checkpoints/*/manifest.json")]
    assert max(saved) >= max(steps), "the step it was at is saved"


class FinishedElsewhere:
    """Puts a run back when a sweep has planned to run it: as if another sweep had just finished it."""

    def __init__(self, run: Path, kept: Path) -> None:
        self.run, self.kept = run, kept

    def __call__(self, event: Any) -> None:
        if isinstance(event, TrialAdvanced) and event.trial == self.run.name and self.kept.exists():
            self.kept.rename(self.run)


@pytest.mark.slow
def test_a_trial_that_another_sweep_has_finished_says_nothing_of_this_ones_overhead(
    experiment: Path, tmp_path: Path
) -> None:
    rewrite(experiment, {"space": {DENSITY: {"choice": [0.5]}}})
    first = sweep(load_experiment(experiment))
    assert first["overhead_seconds_per_trial"] > 0
    run = Path(first["trials"][0]["path"])
    second = sweep(load_experiment(experiment), on_event=FinishedElsewhere(run, run.rename(tmp_path / "kept")))
    assert second["counts"] == {"finished": 1, "stopped": 0, "failed": 0}
    assert second["overhead_seconds_per_trial"] is None


@pytest.mark.slow
def test_a_search_writes_down_what_it_draws(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {DENSITY: {"quniform": [0.1, 0.5, 0.1]}, RATE: {"loguniform": [1e-5, 1e-3]}}
    rewrite(experiment, {"space": space, "search": "optuna", "trials": 6, "concurrent": 2}, train={"max_steps": 2})
    assert main(["sweep", str(experiment), "--dry-run"]) == 0
    assert "up to 1 more points will be drawn as results come in" in capsys.readouterr().out
    assert main(["sweep", str(experiment)]) == 0
    result = sweep_result(tmp_path / "runs")
    (points,) = (tmp_path / "runs" / "ladder").glob("sweep-*/points")
    drawn = [json.loads(file.read_text()) for file in sorted(points.iterdir())]
    assert [trial["settings"] for trial in result["trials"]] == drawn
    assert result["counts"] == {"finished": 6, "stopped": 0, "failed": 0}
    assert all(0.0999 < trial["density"] < 0.5001 for trial in result["trials"])
    capsys.readouterr()
    assert main(["sweep", str(experiment)]) == 0
    assert "trials:  finished before" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_that_finds_no_more_is_complete_and_a_fresh_one_forgets_its_points(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"space": {DENSITY: {"choice": [0.5, 0.2]}}, "search": "optuna", "trials": 3}
    rewrite(experiment, search, train={"max_steps": 2})
    plan = plan_sweep(load_experiment(experiment))
    first = plan.points
    plan.points = first[::-1]  # as another version may have drawn them
    assert plan.is_current
    for number in range(2):
        plan.record_point(number)
    assert not plan.is_current, "another command may have drawn them"
    assert plan_sweep(load_experiment(experiment)).points == first[::-1]
    assert main(["sweep", str(experiment), "--fresh"]) == 0
    assert [trial["settings"] for trial in sweep_result(tmp_path / "runs")["trials"]] == first
    assert "no more than 2 of the 3 points are found" in capsys.readouterr().err
    assert main(["sweep", str(experiment)]) == 0
    assert "trials:  finished before" in capsys.readouterr().err, "though three points are wanted"
    assert not plan_sweep(load_experiment(experiment, ["sweep.trials=4"])).is_complete

    assert main(["sweep", str(experiment), "sweep.trials=1"]) == 0
    assert [trial["settings"] for trial in sweep_result(tmp_path / "runs")["trials"]] == first[:1]


@pytest.mark.slow
def test_trials_of_two_workers_share_the_cluster(stopping: Path, tmp_path: Path) -> None:
    assert main(["sweep", str(stopping), "cluster.workers=2", "train.micro_batches=2"]) == 0
    result = sweep_result(tmp_path / "runs")
    assert result["counts"]["finished"] + result["counts"]["stopped"] == 4
    assert result["counts"]["stopped"] > 0
    deadline = time.monotonic() + 30
    while groups := held():
        assert time.monotonic() < deadline, f"what the workers of stopped trials held is given back: {groups}"
        time.sleep(0.5)
    wait_for(lambda: not list((tmp_path / "runs").rglob("ray")), "what Ray Train has written of stopped trials to go")
    one = ("train.micro_batches=2", f"cluster.storage={tmp_path / 'one'}")
    assert main(["sweep", str(stopping), *one]) == 0
    alone = sweep_result(tmp_path / "one")
    assert [trial["run"] for trial in alone["trials"]] == [trial["run"] for trial in result["trials"]]
    for first, second in zip(result["trials"], alone["trials"], strict=True):
        assert (first["state"], first["metric"]) == (second["state"], pytest.approx(second["metric"], abs=1e-6))
