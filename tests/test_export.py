"""What `raypp export` writes where, and what it refuses; and that all commands tell a sweep from a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from raypp.cli import main
from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.export.huggingface import export_run
from raypp.runs import start_run, write_experiment
from raypp.storage import Location


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, with a tiny model."""
    experiment = Experiment.model_validate({"name": "tiny", "task": "mrpc", "student": {"model": "tiny"}})
    run = Location.of(tmp_path / "run").make_folder()
    start_run(run, experiment, "digest", {})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "run" / "model")
    (run / "result.json").write_json({})
    return tmp_path / "run"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a finished sweep."""
    values = {"name": "tiny", "task": "mrpc", "student": {"model": "tiny"}, "pruning": {"method": "topk"}}
    space = {"space": {"pruning.final_density": {"choice": [0.5, 0.2]}}}
    folder = Location.of(tmp_path / "sweep-1").make_folder()
    write_experiment(folder, Experiment.model_validate({**values, "sweep": space}), "digest", {})
    (folder / "result.json").write_json({})
    return tmp_path / "sweep-1"


def same_weights(one: Path, other: Path) -> bool:
    models = [AutoModelForSequenceClassification.from_pretrained(folder).state_dict() for folder in (one, other)]
    return all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_a_model_is_exported_to_a_path_to_a_uri_and_to_a_bucket(run: Path, bucket: Location, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "new" / "path")]) == 0
    assert main(["export", str(run), "--to", (tmp_path / "uri").as_uri()]) == 0
    assert export_run(str(run), bucket / "model").startswith("2 files in ")
    for folder in ("new/path", "uri", "bucket/model"):
        assert same_weights(run / "model", tmp_path / folder)


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "nowhere://bucket/model"]) == 2
    assert "--to: 'nowhere://bucket/model' cannot be opened" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--to: .* is not empty"):
        export_run(str(run), Location.of(run))
    (run / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"RUN: the run .* has no model"):
        export_run(str(run), Location.of(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "field"),
    [(["export", "--to", "out"], "RUN"), (["inspect"], "MODEL"), (["evaluate"], "MODEL")],
    ids=["export", "inspect", "evaluate"],
)
def test_a_sweep_is_no_run(
    words: list[str],
    field: str,
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([words[0], str(sweep), *words[1:]]) == 2
    assert f"{field}: {sweep} is a sweep; give one of its runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predictions_are_not_written_to_a_folder_that_is_named_like_a_uri(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(run), "--out", "s3://bucket/predictions"]) == 2
    assert "--out: must be a local folder, got 's3://" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"], "no folder of that name either"
