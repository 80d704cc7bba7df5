"""A run's folder, started over."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raypp.load_config import load_experiment
from raypp.runs import clear_run, finished_result, start_run
from raypp.storage import Location


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
