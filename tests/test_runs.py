"""A run's folder: held by one process at a time, and started over."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
import yaml

from raypp.errors import ConfigError
from raypp.load_config import load_experiment
from raypp.locks import locked
from raypp.runs import clear_run, finished_result, start_run
from raypp.storage import Location
from raypp.writable import check_writable


def test_a_run_that_was_being_started_over_is_not_finished_however_far_that_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"task": "sentiment", "student": {"model": "no/model"}}))
    run = Location.of(tmp_path / "run")
    deleted: list[str] = []
    delete = Location.delete

    def killed_at_the_third(location: Location) -> None:
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(location.name)
        delete(location)

    start_run(run.make_folder(), load_experiment(str(file)), "old", {})
    (run / "result.json").write_json({"metrics": {}})
    (run / "metrics.jsonl").write_text("")
    assert finished_result(run, "old") == {"metrics": {}}
    monkeypatch.setattr(Location, "delete", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        clear_run(run)
    assert deleted[0] == "result.json"
    monkeypatch.undo()
    (tmp_path / "run" / "experiment.yaml").unlink(missing_ok=True)
    assert finished_result(run, "new") is None


def test_who_waits_for_a_run_gets_it_also_where_its_holder_leaves_no_folder(tmp_path: Path) -> None:
    """Which it does where it is refused before it has written anything."""
    run = Location.of(tmp_path / "runs" / "run")
    held = []

    def wait() -> None:
        with locked(run, wait=True):
            held.append((tmp_path / "runs" / "run" / ".lock").is_file())

    with locked(run):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(1.2)  # it has looked more than once
        assert not held
    waiting.join(timeout=60)
    assert held == [True]


def test_a_run_that_goes_on_with_other_versions_says_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"task": "sentiment", "student": {"model": "no/model"}}))
    run, experiment = Location.of(tmp_path / "run").make_folder(), load_experiment(str(file))
    start_run(run, experiment, "digest", {"torch": "2.12.0", "ray": "2.60.0"})
    with caplog.at_level(logging.WARNING, logger="raypp"):
        start_run(run, experiment, "digest", {"torch": "2.13.0", "ray": "2.60.0"})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "torch 2.12.0 -> 2.13.0" in said
    assert "ray 2.60" not in said


def test_a_run_that_another_process_works_on_is_refused(tmp_path: Path) -> None:
    run = Location.of(tmp_path / "runs" / "run")
    with (
        locked(run),
        pytest.raises(ConfigError, match=r"another process \(\{.*\}\) works on .*wait for it, or stop it"),
        locked(run),
    ):
        pass
    with locked(run):
        pass


def test_a_folder_among_a_jobs_files_is_refused_even_by_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test_job.py has this with a job of Ray."""
    files = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    files.mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (files / "mounted").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(files)
    monkeypatch.chdir(files)
    for path in ("runs", tmp_path / "link" / "runs"):
        with pytest.raises(ConfigError, match=r"^cluster\.storage: /.*/runs is among the files of the job.*s3://"):
            check_writable(Location.of(path), "cluster.storage")
    assert not (files / "runs").exists()
    check_writable(Location.of("mounted/runs"), "cluster.storage")
