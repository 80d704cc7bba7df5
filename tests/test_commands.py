"""The commands around a run, as a user calls them: evaluate, inspect, export, show, prepare; and how they end."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from whole_runs import copy_tokenizer

import raypp
from raypp.cli import main
from raypp.cluster.session import Session
from raypp.figures.run import FIGURES
from raypp.kinds import kind_of
from raypp.models.loading import load_pretrained
from raypp.models.saved_models import save_model
from raypp.storage import Location
from raypp.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SPACE = "sweep={space: {student.layers: {choice: [[0, 1], [0, 1, 2]]}}}"
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
TEST_HEADER = "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def rows(count: int, first: str | None = None) -> str:
    lines = []
    for row in range(count):
        start = row % 2 if first is None else row
        lines.append(f'{start}\t{row}\t{row}\tThe "{row} men" ran .\tThe men {row * (row % 2)} ran .\n')
    return "".join(lines)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A folder with a small MRPC, an experiment on it, and its finished run."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "MRPC").mkdir()
    (folder / "MRPC" / "train.tsv").write_text("\ufeff" + HEADER + rows(64))
    (folder / "MRPC" / "dev.tsv").write_text("\ufeff" + HEADER + rows(20))
    (folder / "MRPC" / "test.tsv").write_text("\ufeff" + TEST_HEADER + rows(10, "index"))
    experiment = {
        "task": "mrpc",
        "data": {"source": {"kind": "official", "directory": str(folder / "MRPC")}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "pruning": {"method": "topk", "final_density": 0.25, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 6, "batch_size": 8, "log_every_steps": 2},
        "evaluation": {"every_steps": 3},
        "run": "first",
        "cluster": {"workers": 0, "storage": str(folder / "runs")},
        "tracking": {"wandb": "off"},
    }
    (folder / "mrpc.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["train", str(folder / "mrpc.yaml")]) == 0
    return folder


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    return world / "runs" / "mrpc" / "first"


def test_a_run_leaves_what_the_readme_says(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("experiment.yaml", "metrics.jsonl", "result.json", "predictions.tsv", "model", "figures", "checkpoints")
    }
    result = json.loads((finished / "result.json").read_text())
    assert result["requested_density"] == 0.25
    assert result["density"]["linear"] == pytest.approx(0.25, abs=1e-4)
    assert result["density"]["linear"] < result["density"]["encoder"] < result["density"]["model"]
    assert set(result["versions"]) >= {"raypp", "torch", "transformers", "ray"}
    lines = (finished / "predictions.tsv").read_text().splitlines()
    assert lines[0] == "split\trow\tlabel\tprediction\tlogit_0\tlogit_1"
    right = [line.split("\t")[2] == line.split("\t")[3] for line in lines[1:]]
    assert np.mean(right) == result["metrics"]["eval/accuracy"]


def test_a_run_has_every_figure_and_each_can_be_saved_in_any_form(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.stem for path in (finished / "figures").glob("*.png")} == set(FIGURES)
    figures = raypp.draw(finished)
    assert list(figures) == ["overview", *FIGURES]
    with Image.open(finished / "figures" / "movement.png") as image:
        assert figures["movement"].rgb().shape == (image.height, image.width, 3)
    file = tmp_path / "scores.pdf"
    assert main(["report", str(finished), "--save", str(file), "--figure", "scores"]) == 0
    assert file.read_bytes().startswith(b"%PDF")
    assert main(["report", str(finished), "--save", str(file), "--figure", "front"]) == 2
    assert "has no figure 'front'; allowed: overview, schedule" in capsys.readouterr().err
    assert main(["report", str(finished), "--figure", "scores"]) == 2
    assert "--figure: the report has all figures" in capsys.readouterr().err
    assert main(["inspect", str(finished), "--save", str(tmp_path / "movement.jpg"), "--figure", "movement"]) == 0


def test_evaluate_a_run_gives_the_runs_own_metrics(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--out", str(tmp_path)]) == 0
    accuracy = json.loads((finished / "result.json").read_text())["metrics"]["eval/accuracy"]
    assert f"dev: accuracy {accuracy:.4f}" in capsys.readouterr().out
    assert (tmp_path / "predictions-dev.tsv").read_text() == (finished / "predictions.tsv").read_text()
    assert main(["evaluate", str(finished), "--task", "mrpc", "--out", str(tmp_path)]) == 0
    assert f"dev: accuracy {accuracy:.4f}" in capsys.readouterr().out, "its task by name has its data, too"


def test_a_run_of_a_raypp_with_other_settings_is_said_to_be_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((finished / "experiment.yaml").read_text())
    values["train"]["warm_restarts"] = 3
    values["provenance"]["versions"]["raypp"] = "0.0.1"
    shutil.copytree(finished / "model", tmp_path / "model")
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(values))
    for words in (["evaluate", str(tmp_path)], ["inspect", str(tmp_path)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "was started with raypp 0.0.1, and this version does not know its settings train.warm_restarts" in said


def test_a_run_that_was_killed_while_it_delivered_keeps_its_speed(finished: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "mrpc" / "first")
    (tmp_path / "mrpc" / "first" / "result.json").unlink()
    assert main(["train", str(world / "mrpc.yaml"), f"cluster.storage={tmp_path}"]) == 0
    before, after = (
        json.loads((folder / "result.json").read_text()) for folder in (finished, tmp_path / "mrpc" / "first")
    )
    assert after["metrics"] == before["metrics"]
    of_the_training = before["perf"].keys() - {"perf/loop_seconds", "perf/final_evaluation_seconds"}
    assert of_the_training > {"perf/steps_per_second", "perf/share_checkpoint", "perf/peak_memory_bytes"}
    for name in of_the_training:
        assert after["perf"][name] == before["perf"][name]
    assert after["device_hours"] == before["device_hours"] > 0


def test_a_finished_run_is_returned_and_fresh_starts_over(
    finished: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = (finished / "result.json").stat().st_mtime_ns
    assert main(["train", str(world / "mrpc.yaml")]) == 0
    assert "student:  finished before" in capsys.readouterr().err
    assert (finished / "result.json").stat().st_mtime_ns == written
    shutil.copytree(finished, tmp_path / "mrpc" / "first")
    where = [f"cluster.storage={tmp_path}", f"cluster.store={world / 'runs' / 'store'}"]
    one = ["train.max_steps=1", "pruning.final_warmup=0", "evaluation.every_steps=1"]
    assert main(["train", str(world / "mrpc.yaml"), *where, *one]) == 2
    assert "contains a run with other settings" in " ".join(capsys.readouterr().err.split())
    assert main(["train", str(world / "mrpc.yaml"), *where, *one, "--fresh"]) == 0
    assert json.loads((tmp_path / "mrpc" / "first" / "result.json").read_text())["steps"] == 1


def test_from_python_a_run_returns_what_its_result_file_holds_and_prints_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"cluster.storage={tmp_path}", f"cluster.store={world / 'runs' / 'store'}"]
    short = ["train.max_steps=1", "pruning.final_warmup=0", "evaluation.every_steps=1"]
    experiment = raypp.load_experiment(world / "mrpc.yaml", [*where, *short])
    capsys.readouterr()
    trained, found = raypp.train(experiment), raypp.train(experiment)
    assert capsys.readouterr().out == ""
    assert trained == found == json.loads((tmp_path / "mrpc" / "first" / "result.json").read_text())


def test_a_run_predicts_its_own_test_split_and_a_file_that_another_experiment_names(
    finished: Path, world: Path, tmp_path: Path
) -> None:
    assert main(["evaluate", str(finished), "--split", "test", "--out", str(tmp_path / "own")]) == 0
    own = (tmp_path / "own" / "MRPC.tsv").read_text()
    assert len(own.splitlines()) == 11
    cells = [line.split("\t") for line in (world / "MRPC" / "test.tsv").read_text().splitlines()[1:]]
    for name, head, more in (("train", ["label"], ["1"]), ("test", [], [])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(
                [["sentence1", "sentence2", *head], *([cell[3], cell[4], *more] for cell in cells)]
            )
    source = {"kind": "files", "train": f"{tmp_path}/train.csv", "dev": f"{tmp_path}/train.csv"}
    source["test"] = f"{tmp_path}/test.csv"
    values = {"task": "mrpc", "data": {"source": source, "max_length": 32}, "student": {"model": "m"}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(values))
    words = ["--experiment", str(tmp_path / "new.yaml"), "--split", "test", "--out", str(tmp_path / "new")]
    assert main(["evaluate", str(finished), *words]) == 0
    assert (tmp_path / "new" / "MRPC.tsv").read_text() == own


def test_a_model_of_mnli_answers_the_diagnostic_set(minilm_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\tA cat sat .\tIt did .\n1\tA .\tB .\n")
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    save_model(load_pretrained(minilm_dir, kind_of(TASKS["mnli"]), 0), tokenizer, Location.of(tmp_path / "model"))
    words = ["--task", "ax", "--split", "test", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(tmp_path / "model"), *words]) == 0
    lines = (tmp_path / "out" / "AX.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert len(lines) == 3
    assert {line.split("\t")[1] for line in lines[1:]} <= set(TASKS["mnli"].labels)


def test_evaluate_a_test_split_writes_the_submission(finished: Path, world: Path, tmp_path: Path) -> None:
    model, data = str(finished / "model"), str(world / "MRPC")
    words = ["evaluate", model, "--task", "MRPC", "--data", data, "--split", "test", "--out", str(tmp_path)]
    assert main(words) == 0
    lines = (tmp_path / "MRPC.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    classifier = AutoModelForSequenceClassification.from_pretrained(finished / "model")
    cells = [line.split("\t") for line in (world / "MRPC" / "test.tsv").read_text().splitlines()[1:]]
    inputs = tokenizer([c[3] for c in cells], [c[4] for c in cells], padding=True, return_tensors="pt")
    expected = classifier(**inputs).logits.argmax(-1).tolist()
    assert lines[1:] == [f"{row}\t{label}" for row, label in enumerate(expected)]


def test_the_submission_of_a_regression_task_has_a_number_a_row(minilm_dir: Path, tmp_path: Path) -> None:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
    lines = [f"{row}\tg\tf\ty\to\ts\ts\tA man .\tA dog .\n" for row in range(3)]
    (tmp_path / "test.tsv").write_text(header + "".join(lines))
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    save_model(load_pretrained(minilm_dir, kind_of(TASKS["stsb"]), 0), tokenizer, Location.of(tmp_path / "model"))
    words = ["--task", "stsb", "--data", str(tmp_path), "--split", "test", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(tmp_path / "model"), *words]) == 0
    written = (tmp_path / "out" / TASKS["stsb"].submission_file("test")).read_text().splitlines()
    assert [line.split("\t")[0] for line in written] == ["index", "0", "1", "2"]
    assert all(0.0 <= float(line.split("\t")[1]) <= 5.0 for line in written[1:])


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"raypp {importlib.metadata.version('raypp')}\n"


def test_evaluate_all_checkpoints_repeats_what_training_reported(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--all-checkpoints"]) == 0
    printed = capsys.readouterr().out
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    reported = {record["step"]: record["eval/accuracy"] for record in records if "eval/accuracy" in record}
    assert sorted(reported) == [3, 6]
    for step, accuracy in reported.items():
        assert f"step {step} dev: accuracy {accuracy:.4f}" in printed


def test_inspect_shows_every_layer_and_draws_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(finished), "--save", str(tmp_path / "layers.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("0.2500") >= 36, "each of 6 x 6 matrices"
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_export_writes_a_folder_that_transformers_opens(finished: Path, tmp_path: Path) -> None:
    assert main(["export", str(finished), "--to", str(tmp_path / "out")]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.label2id == {"not_equivalent": 0, "equivalent": 1}
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == model.config.vocab_size


def test_every_field_that_a_run_writes_is_explained(finished: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
    names = {name for code in re.findall(r"`([^`]+)`", page) for name in code.split(", ")}
    beginnings = tuple(name.removesuffix("…") for name in names if name.endswith("…"))
    result = json.loads((finished / "result.json").read_text())
    assert set(result) - names == set()
    keys = {key for line in (finished / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    keys = {key for key in keys if not key.startswith("eval/")} | result["perf"].keys()
    assert keys > {"step", "train/loss", "prune/density", "perf/step_seconds"}
    unexplained = {key for key in keys if key not in names and key.split("/")[-1] not in names}
    assert {key for key in unexplained if not key.startswith(beginnings)} == set()


def test_show_says_what_would_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(world / "mrpc.yaml"), "pruning.layers={include: [attention]}"]) == 0
    printed = capsys.readouterr().out
    assert "# pruned: 24 linear layers, 3,538,944 weights" in printed
    assert "#   encoder.layer.5.attention.output.dense (384, 384)" in printed
    resolved = yaml.safe_load(printed)
    assert resolved["train"]["warmup_fraction"] == 0.1


def test_show_of_a_sweep_says_what_its_base_would_be(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(world / "mrpc.yaml"), SPACE]) == 0
    (shown := world / "shown.yaml").write_text(capsys.readouterr().out)
    assert "raypp sweep --dry-run" in shown.read_text()
    assert main(["sweep", str(shown), "run=null", "--dry-run"]) == 0
    assert "[0, 1, 2]" in capsys.readouterr().out


def test_prepare_of_a_sweep_fills_the_store_for_all_its_trials(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "sweep={space: {data.max_length: {choice: [16, 32]}, train.seed: {choice: [1, 2]}}}"
    overrides = [space, "run=null", f"cluster.storage={tmp_path}"]
    assert main(["prepare", str(world / "mrpc.yaml"), *overrides]) == 0
    told = [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["features: 64 rows", "features: 20 rows"] * 2
    assert not (tmp_path / "mrpc").exists()


def test_prepare_fills_the_store_and_a_run_reads_it_without_ray(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(session: Session) -> None:
        raise AssertionError("Ray is started")

    overrides = [f"cluster.storage={tmp_path}", "teacher={train: {max_steps: 2, batch_size: 8}}"]
    assert main(["prepare", str(world / "mrpc.yaml"), *overrides]) == 0
    assert "logits: 64 rows" in capsys.readouterr().out
    assert not (tmp_path / "mrpc").exists()
    with monkeypatch.context() as context:
        context.setattr(Session, "start", refuse)
        assert main(["train", str(world / "mrpc.yaml"), *overrides]) == 0
    errors = capsys.readouterr().err
    for phase in ("features train", "features dev", "teacher logits"):
        assert f"{phase}:  from the store" in errors
    assert "teacher:  finished before" in errors

    (weights,) = tmp_path.glob("store/teachers/*/model/model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(["prepare", str(world / "mrpc.yaml"), *overrides]) == 0
    assert "is damaged and is trained again" in " ".join(capsys.readouterr().err.split())
    assert weights.read_bytes() == before


@pytest.mark.slow
def test_prepare_does_not_compute_on_cpus_what_is_asked_for_on_gpus(
    world: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", str(world / "mrpc.yaml"), f"teacher={{model: {finished / 'model'}}}"]
    assert main([*words, "cluster.gpus_per_worker=1"]) == 2
    assert "cluster.gpus_per_worker: with 1, teacher logits are computed on GPUs" in capsys.readouterr().err
    assert main(words) == 0
    assert "logits: 64 rows" in capsys.readouterr().out


def test_batches_cut_by_tokens_and_a_model_without_the_token_types_that_its_tokenizer_gives(
    world: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=30522)
    torch.manual_seed(0)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "student")
    copy_tokenizer(minilm_dir, tmp_path / "student")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "student")("a", "b")
    overrides = [f"student.model={tmp_path / 'student'}", f"cluster.storage={tmp_path}", "run=tokens"]
    assert main(["train", str(world / "mrpc.yaml"), *overrides, "train.epochs=2", "train.batch_tokens=128"]) == 0
    run = tmp_path / "mrpc" / "tokens"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == json.loads((run / "result.json").read_text())["steps"]
    epochs = [record["train/epoch"] for record in records if "train/epoch" in record]
    assert epochs[-1] == 2.0
    # 64 rows of 16 or 24 padded tokens, 128 a batch: eight rows at most.
    assert 2 * 64 / 8 <= records[-1]["step"] <= 2 * 64 / 5 + 2
    assert main(["evaluate", str(run), "--out", str(tmp_path)]) == 0


def test_a_decoder_finds_the_last_token_where_its_configuration_names_no_padding(
    world: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=30522, pad_token_id=None)
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt")
    copy_tokenizer(minilm_dir, tmp_path / "gpt")
    overrides = [f"student.model={tmp_path / 'gpt'}", f"cluster.storage={tmp_path}", "run=gpt", "pruning=null"]
    assert main(["train", str(world / "mrpc.yaml"), *overrides, "train.max_steps=2"]) == 0
    delivered = json.loads((tmp_path / "mrpc" / "gpt" / "model" / "config.json").read_text())
    assert delivered["pad_token_id"] == 0


@pytest.mark.slow
def test_a_teacher_is_matched_by_label_name(world: Path, finished: Path, tmp_path: Path) -> None:
    teacher = AutoModelForSequenceClassification.from_pretrained(finished / "model")
    plain, turned = tmp_path / "plain", tmp_path / "turned"
    teacher.save_pretrained(plain)
    teacher.classifier.weight.data = teacher.classifier.weight.data.flip(0)
    teacher.classifier.bias.data = teacher.classifier.bias.data.flip(0)
    teacher.config.id2label = {0: "Equivalent", 1: "Not_Equivalent"}
    teacher.config.label2id = {"Equivalent": 0, "Not_Equivalent": 1}
    teacher.save_pretrained(turned)
    results = []
    for folder in (plain, turned):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((finished / "model" / name).read_bytes())
        run = f"run={folder.name}"
        storage = f"cluster.storage={tmp_path / 'runs'}"
        assert main(["train", str(world / "mrpc.yaml"), run, storage, f"teacher={{model: {folder}}}"]) == 0
        results.append(json.loads((tmp_path / "runs" / "mrpc" / folder.name / "result.json").read_text()))
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-6)
    assert results[0]["teacher_metrics"] == pytest.approx(results[1]["teacher_metrics"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "RUN", "--split", "validation"], "allowed: train, dev, test"),
        (["evaluate", "RUN/model"], "--task: is missing"),
        (["evaluate", "RUN/model", "--task", "mnli", "--data", "WORLD/MRPC"], "data.source.directory"),
        (
            ["evaluate", "RUN/model", "--all-checkpoints", "--task", "mrpc", "--data", "WORLD/MRPC"],
            "MODEL is not a run folder",
        ),
        (["inspect", "WORLD/nowhere"], "MODEL"),
        (["inspect", "RUN", "--save", "WORLD/figure.bmp"], ".png"),
        (["export", "WORLD", "--to", "WORLD/out"], "is not a finished run"),
        (["export", "RUN", "--to", "WORLD/MRPC"], "is not empty"),
        (["train", "WORLD/mrpc.yaml", "cluster.workers=5"], "but the cluster has 4; ask for less"),
        (["train", "WORLD/mrpc.yaml", "cluster.workers=1", "cluster.gpus_per_worker=1"], "but the cluster has 0"),
        (["train", "WORLD/mrpc.yaml", "cluster.gpus_per_worker=1"], "torch sees none"),
        (["train", "WORLD/mrpc.yaml", "cluster.gpus_per_worker=2"], "at most 1 GPU"),
        (
            ["train", "WORLD/mrpc.yaml", "cluster.workers=[1,2]", "cluster.placement=strict_pack"],
            "allowed: pack, spread",
        ),
        (["evaluate", "RUN", "--all-checkpoints", "--split", "test"], "test has no labels"),
        (["evaluate", "RUN", "--all-checkpoints", "--task", "sentiment"], "are not the labels of sentiment"),
        (["evaluate", "RUN", "--all-checkpoints", "--task", "similarity"], "but the model has 2 outputs"),
        (["evaluate", "RUN", "--all-checkpoints", "--out", "WORLD/out"], "has no effect with --all-checkpoints"),
        (["train", "WORLD/mrpc.yaml", "train.seed=1"], "contains a run with other settings"),
        (["train", "WORLD/no.yaml"], "cannot be read"),
    ],
)
def test_what_is_asked_wrongly_ends_with_status_2(
    words: list[str], expected: str, world: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spelled = [word.replace("RUN", str(finished)).replace("WORLD", str(world)) for word in words]
    if "workers" in words[-1] or "workers" in words[-2]:
        spelled.append("run=other")
    assert main(spelled) == 2
    errors = capsys.readouterr().err
    assert expected in errors
    assert "Traceback" not in errors
    assert not (world / "runs" / "mrpc" / "other").exists()
