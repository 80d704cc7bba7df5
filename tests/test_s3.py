"""Runs and the store in a real bucket: moto's S3, served by a process of its own, by pyarrow's own client."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from transformers import DistilBertConfig, DistilBertModel
from whole_runs import assert_same, copy_tokenizer, only_run, outcome, resumed_after, run_command, started, wait_for

from raypp.cli import main
from raypp.errors import ConfigError
from raypp.locks import locked
from raypp.storage import Location
from raypp.store import Store, write_part
from raypp.training.checkpoint import Checkpoints, capture
from raypp.writable import check_writable

STEPS = 150


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 that takes any credentials, which the environment has, with an empty bucket named `bucket`."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as stream, pytest.MonkeyPatch.context() as environment:
        words = ["-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen([sys.executable, *words], stdout=stream, stderr=stream)
        try:
            wait_for(lambda: process.poll() is not None or "http://" in log.read_text(), "the server")
            found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            assert found is not None, log.read_text()
            post(f"{found[0]}/bucket", b"", "PUT")
            for name, value in {
                "AWS_ENDPOINT_URL": found[0],
                "AWS_ACCESS_KEY_ID": "of-the-test",
                "AWS_SECRET_ACCESS_KEY": "of-the-test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",  # nobody is asked who this machine might be
            }.items():
                environment.setenv(name, value)
            yield found[0]
        finally:
            process.terminate()
            process.wait(60)


def post(url: str, content: bytes, method: str = "POST") -> None:
    with urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": "text/plain"}, method=method)):
        pass


@pytest.fixture
def bucket(server: str) -> Iterator[Location]:
    location = Location.of("s3://bucket/test")
    yield location
    location.delete()


@pytest.fixture
def strict(server: str) -> Iterator[None]:
    """Credentials are looked at from now on, and those of the test are nobody's."""
    post(f"{server}/moto-api/reset-auth", b"0")
    yield
    post(f"{server}/moto-api/reset-auth", b"inf")


def test_files_and_folders(bucket: Location, tmp_path: Path) -> None:
    assert not bucket.is_local
    assert bucket.children() == bucket.files() == []
    bucket.make_folder()
    file = bucket / "down" / "file.json"
    assert not file.is_file()
    for content in ({"a": 1}, {"a": 2}):  # a file is replaced, whole
        file.write_json(content)
        assert file.read_json() == content
    assert file.is_file()
    assert (bucket / "down").is_folder()
    (bucket / "large").write_bytes(large := bytes(range(256)) * (12 << 12))  # 12 MiB: more than one part of an upload
    assert b"".join((bucket / "large").chunks()) == large
    assert [child.name for child in bucket.children()] == ["down", "large"]
    assert [found.path for found in bucket.files()] == ["bucket/test/down/file.json", "bucket/test/large"]
    assert Location.of(str(file)).read_json() == {"a": 2}, "named by what opens it again"

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x").write_text("x")
    (bucket / "up").upload(tmp_path / "here")
    assert (bucket / "up" / "x").sha256() == Location.of(tmp_path / "here" / "x").sha256()
    (tmp_path / "back").mkdir()
    assert ((bucket / "up").download(tmp_path / "back") / "x").read_text() == "x"

    (bucket / "down").delete()
    (bucket / "large").delete()
    (bucket / "large").delete()  # somebody was first
    assert [found.path for found in bucket.files()] == ["bucket/test/up/x"]
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_checkpoints(bucket: Location) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    checkpoints = Checkpoints(bucket / "checkpoints", keep=2)
    for step in (1, 2, 3):
        checkpoints.write(capture(step, model, None, {"step": step}))
        checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    (bucket / "checkpoints" / "step-00000003" / "manifest.json").delete()  # as a kill leaves it
    latest = Checkpoints(bucket / "checkpoints", keep=2).latest()
    assert latest is not None
    assert (latest.step, latest.state["step"]) == (2, 2)
    assert torch.equal(latest.parameters["weight"], model.weight)


def test_the_store(bucket: Location) -> None:
    store = Store(bucket / "store")
    assert store.find("features", "key") is None
    with pytest.raises(KeyboardInterrupt), store.build("features", "key", {}) as build:  # noqa: PT012
        write_part(build.location, pa.table({"row": [0]}))
        raise KeyboardInterrupt
    assert store.location.files() == []
    with store.build("features", "key", {}) as build:
        files = [write_part(build.location, pa.table({"row": rows})) for rows in ([2], [0, 1])]
        write_part(build.location, pa.table({"row": [7]}))  # does not count
        assert store.find("features", "key") is None
        built = build.finish(3, {}, files)
    found = store.find("features", "key")
    assert found == built
    assert found.read_table()["row"].to_pylist() == [0, 1, 2]
    assert len(found.location.files()) == 3


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("s3")
    torch.manual_seed(0)
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=30522)
    DistilBertModel(config).save_pretrained(folder / "student")
    copy_tokenizer(minilm_dir, folder / "student")
    values = {
        "name": "tiny",
        "run": "first",
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 16}, "max_length": 32},
        "student": {"model": str(folder / "student")},
        "pruning": {"method": "topk", "final_density": 0.3, "initial_warmup": 1, "final_warmup": 1},
        "train": {"max_steps": STEPS, "batch_size": 8, "log_every_steps": 1},
        "evaluation": {"every_steps": STEPS // 2},
        "cluster": {"workers": 0, "checkpoint_every_steps": 5, "storage": "s3://bucket/runs"},
        "tracking": {"wandb": "off"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow  # its files, checkpoints and store are tested above, in seconds
@pytest.mark.ray
def test_a_run_is_interrupted_goes_on_and_is_the_one_on_a_disk(
    server: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Location.of("s3://bucket/runs/tiny/first")
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    with started("train", experiment) as command:
        wait_for(lambda: bool(checkpoints.steps()) or command.process.poll() is not None, "a checkpoint")
        command.process.terminate()
        status, output = command.end()
    assert status == 130, output
    done = checkpoints.steps()[-1]
    assert 0 < done < STEPS
    assert not (run / "result.json").is_file()

    output = run_command("train", experiment)
    assert resumed_after(output) == done
    assert "features train: from the store" in " ".join(output.split())
    result = (run / "result.json").read_json()
    assert result["paths"]["model"] == "s3://bucket/runs/tiny/first/model"
    assert main(["train", str(experiment)]) == 0
    assert "finished before" in capsys.readouterr().err

    run_command("train", experiment, f"cluster.storage={tmp_path / 'runs'}", "cluster.store=s3://bucket/runs/store")
    on_disk = only_run(tmp_path / "runs")
    there = run.download(tmp_path / "run")
    assert_same(outcome(there), outcome(on_disk))
    assert {path.name for path in there.iterdir()} == {path.name for path in on_disk.iterdir()}
    assert main(["evaluate", str(run), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "predictions-dev.tsv").read_text() == (on_disk / "predictions.tsv").read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_of_ray_train_and_the_trials_of_a_sweep(server: str, experiment: Path, tmp_path: Path) -> None:
    words = ("train", experiment, "run=with-a-worker", "cluster.cpus_per_worker=1")
    run = Location.of("s3://bucket/runs/tiny/with-a-worker")
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    with started(*words, "cluster.workers=1") as command:
        wait_for(lambda: bool(checkpoints.steps()) or command.process.poll() is not None, "a checkpoint")
        command.process.terminate()
        status, output = command.end()
    assert status == 130, output
    done = checkpoints.steps()[-1]
    assert resumed_after(run_command(*words, "cluster.workers=1")) == done
    run_command(*words, f"cluster.storage={tmp_path / 'runs'}")
    assert_same(outcome(run.download(tmp_path / "run")), outcome(only_run(tmp_path / "runs")))

    values = yaml.safe_load(experiment.read_text())
    del values["run"]
    values |= {"name": "swept", "sweep": {"space": {"pruning.final_density": {"choice": [0.5, 0.3]}}}}
    values["cluster"]["workers"] = values["cluster"]["cpus_per_worker"] = 1
    (tmp_path / "swept.yaml").write_text(yaml.safe_dump(values))
    assert "2 of 2 trials" in " ".join(run_command("sweep", tmp_path / "swept.yaml").split())
    (swept,) = [child for child in Location.of("s3://bucket/runs/swept").children() if child.name.startswith("sweep-")]
    result = (swept / "result.json").read_json()
    assert [trial["state"] for trial in result["trials"]] == ["finished"] * 2
    assert all(Location.of(f"{trial['path']}/result.json").is_file() for trial in result["trials"])
    assert "trials: finished before" in " ".join(run_command("sweep", tmp_path / "swept.yaml").split())
    assert not [file for file in swept.files() if file.name.endswith(".tmp")]


def test_a_second_command_on_a_run_is_refused(
    server: str, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(Location.of("s3://bucket/owned/tiny/first")):
        assert main(["train", str(experiment), "cluster.storage=s3://bucket/owned"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "raypp: run: another process ({" in said
    assert "works on s3://bucket/owned/tiny/first; wait for it, or stop it" in said


def test_no_such_bucket_is_refused_before_anything_starts(
    server: str, experiment: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["train", str(experiment), "cluster.storage=s3://missing/runs"]) == 2
    said = capsys.readouterr().err
    assert "raypp: cluster.storage: s3://missing/runs cannot be written to: Bucket 'missing' not found" in said
    assert caplog.records == [], "nothing is tried again"


def test_credentials_that_are_refused_are_said_before_anything_starts(
    strict: None, experiment: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["train", str(experiment)]) == 2
    said = capsys.readouterr().err
    assert "raypp: cluster.storage: s3://bucket/runs cannot be written to: " in said
    assert "AWS Error ACCESS_DENIED" in said
    assert caplog.records == [], "nothing is tried again"
    location = Location.of("s3://bucket/runs")
    with pytest.raises(ConfigError, match=r"cluster\.store: s3://bucket/runs/v1/features/key"):
        Store(location).find("features", "key")
    with pytest.raises(OSError, match="INVALID_ACCESS_KEY_ID"):
        (location / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cluster\.storage: "):
        check_writable(location, "cluster.storage")
    assert caplog.records == []
