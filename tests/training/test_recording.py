"""The records of a run's sessions, also in a bucket, and how sessions end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from wandb_files import read_run

from raypp.config import Experiment
from raypp.errors import Interrupted
from raypp.storage import Location
from raypp.sweeps.front import Point
from raypp.sweeps.tracking import record_sweep
from raypp.training.recording import Recorder, moved
from raypp.training.worker import Worker


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
    """The only offline run in the folder."""
    (folder,) = (path for path in bucket.rglob("*run-*") if path.is_dir())
    assert folder.name.startswith("offline-run-")
    assert len(list(bucket.rglob("*.wandb"))) == 1
    return folder


def test_a_session_that_resumes_in_a_bucket_replaces_the_earlier_offline_run(
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

    # A session that records nothing does not replace it.
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


def test_a_command_on_recorded_files_says_where_to_download_them() -> None:
    run = Location.of("s3://bucket/runs/mrpc/run-1?region=us-west-2&scheme=http")
    command = "wandb sync --include-online '/tmp/a b/wandb/run-1'"
    assert moved(command, Path("/tmp/a b"), run) == (
        "wandb sync --include-online run-1  # download it first from "
        "s3://bucket/runs/mrpc/run-1/wandb/run-1?region=us-west-2&scheme=http"
    )
