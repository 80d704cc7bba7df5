"""The log's means: means over steps, and float16's skipped ones. What sessions leave in a bucket."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from wandb_files import read_run

from raypp.config import Experiment
from raypp.errors import Interrupted
from raypp.storage import Location
from raypp.sweeps.front import Point
from raypp.sweeps.tracking import record_sweep
from raypp.training.recording import LogMeans, Recorder, RunProgress, StepSums, moved
from raypp.training.worker import Worker

WEIGHTS = {"hard_loss": 0.25, "soft_loss": 0.75}


def sums_of(hard_loss: float, soft_loss: float, tokens: int, computed_tokens: int) -> StepSums:
    return StepSums((hard_loss, soft_loss), tokens, computed_tokens, interrupted=False)


def test_the_sums_of_a_step_are_added_up_over_workers_and_one_that_leaves_is_enough() -> None:
    one = StepSums.pack(torch.tensor([0.1, 2.0], dtype=torch.float64), 100, 120, interrupted=False)
    other = StepSums.pack(torch.tensor([0.2, 3.0], dtype=torch.float64), 2**24 + 1, 2**24 + 3, interrupted=True)
    assert StepSums.unpack(one) == StepSums((0.1, 2.0), 100, 120, interrupted=False)
    assert StepSums.unpack(one + other) == StepSums((0.1 + 0.2, 5.0), 2**24 + 101, 2**24 + 123, interrupted=True)


def test_means_are_over_rows_and_steps() -> None:
    means = LogMeans(("hard_loss", "soft_loss"))
    means.add(sums_of(8.0, 16.0, 100, 120), counts=dict.fromkeys(WEIGHTS, 8), norm=1.0, seconds=0.5)
    means.add(sums_of(4.0, 4.0, 50, 80), counts=dict.fromkeys(WEIGHTS, 4), norm=3.0, seconds=0.3)
    assert (means.tokens, means.computed_tokens) == (150, 200)
    assert means.values(WEIGHTS) == pytest.approx(
        {
            "train/hard_loss": 1.0,
            "train/soft_loss": 20 / 12,
            "train/loss": 0.25 * 1.0 + 0.75 * 20 / 12,
            "train/gradient_norm": 2.0,
            "perf/step_seconds": 0.4,
        }
    )


def test_each_term_has_its_own_count() -> None:
    means = LogMeans(("hard_loss", "soft_loss"))
    for _ in range(2):
        means.add(sums_of(8.0, 16.0, 100, 120), counts={"hard_loss": 4, "soft_loss": 32}, norm=1.0, seconds=0.5)
    metrics = means.values(WEIGHTS)
    assert (metrics["train/hard_loss"], metrics["train/soft_loss"]) == (2.0, 0.5)


def test_the_best_evaluation_is_the_highest_or_of_perplexity_the_lowest() -> None:
    for headline, best in (("eval/accuracy", 2), ("eval/perplexity", 3)):
        progress = RunProgress()
        for step, value in ((1, 8.0), (2, 9.0), (3, 7.0), (4, 7.0)):
            progress.note(step, headline, {headline: value}, eligible=True)
        progress.note(5, headline, {headline: 100.0}, eligible=False)
        progress.note(6, headline, {headline: 0.1}, eligible=False)
        assert progress.best is not None
        assert progress.best["step"] == best


@pytest.mark.parametrize(("hard_loss", "norm"), [(math.inf, 1.0), (1.0, math.nan)])
def test_a_skipped_step_is_counted_and_spoils_no_mean(hard_loss: float, norm: float) -> None:
    sums = sums_of(hard_loss, 1.0, 10, 10)
    means = LogMeans(("hard_loss", "soft_loss"))
    means.add(sums, counts=dict.fromkeys(WEIGHTS, 1), norm=norm, seconds=0.1)
    assert means.values(WEIGHTS) == {"perf/step_seconds": 0.1, "train/skipped_steps": 1}
    means = LogMeans(("hard_loss", "soft_loss"))
    means.add(sums, counts=dict.fromkeys(WEIGHTS, 1), norm=norm, seconds=0.1)
    means.add(sums_of(8.0, 16.0, 100, 120), counts=dict.fromkeys(WEIGHTS, 8), norm=1.0, seconds=0.3)
    metrics = means.values(WEIGHTS)
    assert metrics["train/skipped_steps"] == 1
    assert (metrics["train/hard_loss"], metrics["train/gradient_norm"]) == (1.0, 1.0)
    assert metrics["perf/step_seconds"] == pytest.approx(0.2)


@pytest.mark.parametrize("stopped", [True, False])
def test_workers_of_a_trial_that_is_stopped_early_have_not_failed(
    stopped: bool, experiment: Experiment, tmp_path: Path
) -> None:
    def leave() -> None:
        worker = Worker(is_interrupted=lambda: True, stops_for_good=lambda: stopped)
        with Recorder(Location.of(tmp_path / "run"), experiment, worker, None) as recorder:
            recorder.start(None)
            recorder.log(1, {"train/loss": 1.0})
            raise Interrupted(1)

    with pytest.raises(Interrupted):
        leave()
    recorded = read_run(the_offline_run(tmp_path / "run"))
    assert recorded["exit_code"] == (0 if stopped else 1)
    assert recorded["summary"].get("stopped_early", False) == stopped


@pytest.fixture
def experiment() -> Experiment:
    values = {"name": "tiny", "task": "mrpc", "student": {"model": "tiny"}, "tracking": {"wandb": "offline"}}
    return Experiment.model_validate(values)


def the_offline_run(bucket: Path) -> Path:
    """The only one there, without copies of it."""
    (folder,) = (path for path in bucket.rglob("*run-*") if path.is_dir())
    assert folder.name.startswith("offline-run-")
    assert len(list(bucket.rglob("*.wandb"))) == 1
    return folder


def test_a_session_that_goes_on_in_a_bucket_replaces_the_offline_run_before_it(
    bucket: Location, experiment: Experiment, tmp_path: Path
) -> None:
    def interrupted_session(resume_step: int | None, step: int) -> None:
        with Recorder(bucket / "run", experiment, Worker(), None) as recorder:
            recorder.start(resume_step)
            recorder.log(step, {"train/loss": 1 / step})
            raise KeyboardInterrupt

    found = []
    for resume_step, step in ((None, 1), (1, 2)):
        time.sleep(1 - time.time() % 1)  # W&B names its folders by the second
        with pytest.raises(KeyboardInterrupt):
            interrupted_session(resume_step, step)
        folder = the_offline_run(tmp_path / "bucket")
        found.append((folder.name, [(row["_step"], row["train/loss"]) for row in read_run(folder)["history"]]))
    assert found[0][0] != found[1][0]
    assert [rows for _, rows in found] == [[(1, 1.0)], [(1, 1.0), (2, 0.5)]]

    # A session that records nothing has nothing to replace it with.
    silent = experiment.model_copy(update={"tracking": experiment.tracking.model_copy(update={"wandb": "off"})})
    with Recorder(bucket / "run", silent, Worker(), None) as recorder:
        recorder.start(2)
        recorder.save()
    assert the_offline_run(tmp_path / "bucket").name == found[1][0]


def test_the_front_of_a_sweep_in_a_bucket_is_recorded_once(
    bucket: Location, experiment: Experiment, tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    folder = (bucket / "sweep-1").make_folder()
    Figure(figsize=(1, 1)).savefig(tmp_path / "bucket" / "sweep-1" / "front.png")
    points = [Point(0, {}, density=0.5, metric=0.75, spread=0.0, runs=("run",), on_front=True)]
    for seconds in (1.0, 2.0):
        result = {
            "headline": "eval/accuracy",
            "seconds": seconds,
            "device_hours": None,
            "teacher": None,
            "counts": {"finished": 1},
        }
        record_sweep(folder, experiment, points, result, warn=pytest.fail)
        assert read_run(the_offline_run(tmp_path / "bucket"))["summary"]["seconds"] == seconds


def test_a_command_on_recorded_files_names_them_where_they_are() -> None:
    run = Location.of("s3://bucket/runs/mrpc/run-1?region=us-west-2&scheme=http")
    command = "wandb sync --include-online '/tmp/a b/wandb/run-1'"
    assert moved(command, Path("/tmp/a b"), run) == (
        "wandb sync --include-online run-1  # fetched first from "
        "s3://bucket/runs/mrpc/run-1/wandb/run-1?region=us-west-2&scheme=http"
    )
