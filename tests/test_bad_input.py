"""Bad input: exit status 2, one message that names place, value and what is allowed, no traceback, nothing
half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from raypp.cli import main


@dataclass
class World:
    """A good experiment on a few rows, for a case to spoil."""

    folder: Path
    minilm: Path
    experiment: dict[str, Any]

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def model(self, name: str, leave_out: str = "", **config: Any) -> str:
        """A copy of the encoder, without some files, with another configuration."""
        folder = self.folder / name
        shutil.copytree(self.minilm, folder, ignore=shutil.ignore_patterns("1_Pooling", *leave_out.split()))
        if config:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return str(folder)

    def set(self, path: str, value: Any) -> None:
        *sections, last = path.split(".")
        section = self.experiment
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value


HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
ROWS = "".join(f"{row % 2}\t{row}\t{row}\tthe {row} man ran .\tthe man {row} ran .\n" for row in range(40))
STS_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
STS_ROW = "0\tg\tf\t2012\t1\tn\tn\tA plane .\tA plane .\t{score}\n"


@pytest.fixture
def world(tmp_path: Path, minilm_dir: Path) -> World:
    world = World(tmp_path, minilm_dir, {})
    for split in ("train", "dev"):
        world.write(f"MRPC/{split}.tsv", HEADER + ROWS)
    world.experiment = {
        "task": "mrpc",
        "data": {"source": {"kind": "official", "directory": str(tmp_path / "MRPC")}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "train": {"epochs": 1, "batch_size": 8},
        "cluster": {"workers": 0, "storage": str(tmp_path / "runs")},
        "tracking": {"wandb": "off"},
    }
    return world


def unlabelled_teacher(world: World) -> str:
    return world.model("teacher", id2label={"0": "spam", "1": "ham"}, label2id={"spam": 0, "ham": 1})


def pickled(world: World) -> str:
    folder = world.model("pickled", "*.safetensors")
    Path(folder, "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


def small(world: World) -> str:
    """A model of the encoder's shape but for its feed-forward layers, which are narrower."""
    folder = world.model("small", "*.safetensors", intermediate_size=96)
    AutoModel.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def turned(world: World) -> str:
    """A classifier of MRPC with its labels the other way round."""
    folder = world.model("turned", "*.safetensors")
    labels = {"id2label": {0: "equivalent", 1: "not_equivalent"}, "label2id": {"equivalent": 0, "not_equivalent": 1}}
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, **labels)).save_pretrained(folder)
    return folder


def sts(world: World, score: str) -> str:
    for split in ("train", "dev"):
        world.write(f"STS-B/{split}.tsv", STS_HEADER + STS_ROW.format(score="1.0") + STS_ROW.format(score=score))
    world.set("task", "stsb")
    return str(world.folder / "STS-B")


def own(world: World, content: str, **task: Any) -> None:
    train, dev = world.write("own/train.csv", content), world.write("own/dev.csv", content)
    world.set("task", {"name": "own", "labels": ["bad", "good"], **task})
    world.set("data.source", {"kind": "files", "train": train, "dev": dev})


def with_tokenizer(world: World, name: str, leave_out: str = "", **settings: Any) -> str:
    """The student with other settings of its tokenizer."""
    folder = world.model(name, leave_out)
    path = Path(folder, "tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def without_padding(world: World) -> str:
    """The student with a tokenizer such as GPT-2's; a BertTokenizer has padding whatever is said."""
    plain = "PreTrainedTokenizerFast"
    return with_tokenizer(world, "unpadded", "special_tokens_map.json", tokenizer_class=plain, pad_token=None)


def another_tokenizer(world: World) -> str:
    return with_tokenizer(world, "cased", do_lower_case=False)


def following(world: World, teacher: str | None = None, **distillation: Any) -> None:
    world.set("teacher", {"model": teacher, "train": {"max_steps": 1}})
    world.set("distillation", distillation)


PRUNING = {"method": "topk", "final_density": 0.5}

# What spoils the experiment, and what the message must say.
CASES: dict[str, tuple[Callable[[World], Any], tuple[str, ...]]] = {
    "unknown task": (lambda w: w.set("task", "mprc"), ("task", "'mprc'", "did you mean 'mrpc'", "cola")),
    "misspelt field": (lambda w: w.set("train.epoch", 1), ("train.epoch", "did you mean 'epochs'")),
    "wrong type": (lambda w: w.set("train.batch_size", "many"), ("train.batch_size", "'many'", "whole number")),
    "out of range": (lambda w: w.set("pruning", PRUNING | {"final_density": 1.5}), ("final_density", "1.5", "1")),
    "field of another method": (
        lambda w: w.set("pruning", PRUNING | {"final_threshold": 0.1}),
        ("pruning.final_threshold", "allowed here", "final_density"),
    ),
    "penalty without scores": (
        lambda w: w.set("pruning", {"method": "magnitude", "penalty": {"kind": "l1", "final_lambda": 1.0}}),
        ("pruning.penalty", "allowed here"),
    ),
    "missing folder": (
        lambda w: w.set("data.source.directory", str(w.folder / "nowhere")),
        ("data.source.directory", "nowhere"),
    ),
    "missing file": (lambda w: (w.folder / "MRPC/dev.tsv").unlink(), ("dev.tsv",)),
    "malformed row": (lambda w: w.write("MRPC/dev.tsv", HEADER + ROWS + "1\t2\t3\n"), ("dev.tsv", "42")),
    "unknown label": (lambda w: w.write("MRPC/train.tsv", HEADER + ROWS + "7\t1\t1\ta\tb\n"), ("train.tsv", "42", "7")),
    "empty split": (lambda w: w.write("MRPC/dev.tsv", HEADER), ("dev.tsv",)),
    "missing column": (lambda w: w.write("MRPC/dev.tsv", "a\tb\n1\t2\n"), ("dev.tsv", "Quality")),
    "not a number": (lambda w: w.set("data.source.directory", sts(w, "much")), ("train.tsv", "3", "much")),
    "NaN score": (lambda w: w.set("data.source.directory", sts(w, "nan")), ("train.tsv", "3", "nan")),
    "not utf-8": (
        lambda w: (w.folder / "MRPC/train.tsv").write_bytes((HEADER + ROWS).encode() + b"1\t1\t1\t\xff\xfe\tb\n"),
        ("train.tsv", "42"),
    ),
    "unknown column": (lambda w: own(w, "text,stars\nfine,good\n"), ("train.csv", "sentence1", "text")),
    "own label unknown": (lambda w: own(w, "sentence1,label\nfine,great\n"), ("train.csv", "great", "bad", "good")),
    "own task without files": (
        lambda w: w.set("task", {"name": "own", "labels": ["bad", "good"]}),
        ("data.source", "files"),
    ),
    "synthetic data for a real task": (
        lambda w: w.set("data.source", {"kind": "synthetic"}),
        ("data.source", "synthetic"),
    ),
    "schedule that cannot end": (
        lambda w: (
            w.set("pruning", PRUNING | {"initial_warmup": 3, "final_warmup": 5}),
            w.set("train.warmup_steps", 1),
        ),
        ("pruning.initial_warmup", "pruning.final_warmup", "train.warmup_steps"),
    ),
    "warmup longer than the run": (lambda w: w.set("train.warmup_steps", 50), ("train.warmup_steps", "50", "5")),
    "no such layer": (
        lambda w: w.set("pruning", PRUNING | {"layers": {"include": ["decoder"]}}),
        ("pruning.layers", "decoder"),
    ),
    "too long for the model": (lambda w: w.set("data.max_length", 600), ("data.max_length", "600", "512")),
    "model that is nowhere": (lambda w: w.set("student.model", "no/such-model"), ("student.model", "no/such-model")),
    "package that is not installed": (
        lambda w: w.set("student.model", "package:no_such_package/model"),
        ("student.model", "no_such_package"),
    ),
    "padding that the model takes for text": (
        lambda w: w.set("student.model", w.model("configured", pad_token_id=7)),
        ("student.model", "pads with token 0", "pad_token_id in config.json is 7"),
    ),
    "start as a teacher of other tokens": (
        lambda w: (following(w, another_tokenizer(w)), w.set("student.start", "teacher")),
        ("student.start: teacher", "cased has another tokenizer", "allowed: pretrained"),
    ),
    "tokenizer without padding": (
        lambda w: w.set("student.model", without_padding(w)),
        ("student.model", "no padding token", "allowed: a tokenizer that has one"),
    ),
    "model without tokenizer": (
        lambda w: w.set("student.model", w.model("bare", "tokenizer* vocab.txt")),
        ("student.model", "tokenizer"),
    ),
    "model without configuration": (
        lambda w: w.set("student.model", w.model("bare", "config.json")),
        ("student.model", "config.json"),
    ),
    "model of pickled weights": (lambda w: w.set("student.model", pickled(w)), ("student.model", "safetensors")),
    "teacher of other labels": (
        lambda w: w.set("teacher", {"model": unlabelled_teacher(w)}),
        ("teacher.model", "spam", "not_equivalent"),
    ),
    "teacher that is not fine-tuned": (
        lambda w: w.set("teacher", {"model": str(w.minilm)}),
        ("teacher.model", "not fine-tuned"),
    ),
    "distillation without a teacher": (
        lambda w: w.set("distillation", {"soft_weight": 0.5}),
        ("distillation", "teacher is null"),
    ),
    "hidden loss without a teacher": (
        lambda w: w.set("distillation", {"hidden_weight": 0.5}),
        ("distillation", "teacher is null"),
    ),
    "hidden loss of a teacher with another tokenizer": (
        lambda w: following(w, another_tokenizer(w), hidden_weight=0.5),
        ("distillation.hidden_weight: 0.5", "cased has another tokenizer", "allowed: 0,"),
    ),
    "hidden loss of a model with a decoder": (
        lambda w: following(w, w.model("both", is_encoder_decoder=True), hidden_weight=0.5),
        ("distillation.hidden_weight: 0.5", "the teacher is a bert with encoder and decoder", "allowed: 0"),
    ),
    "layers that neither model has": (
        lambda w: following(w, hidden_weight=1, hidden_layers=[[0, 0], [7, 6], [6, 9]]),
        ("distillation.hidden_layers: [7, 6]", "layer 7 of the student", "[6, 9]", "layer 9 of the teacher", "to 6"),
    ),
    "hidden layers without a hidden loss": (
        lambda w: following(w, hidden_layers=[[6, 6]]),
        ("distillation", "hidden_layers has no effect without hidden_weight"),
    ),
    "a pair of layers twice": (
        lambda w: following(w, hidden_weight=1, hidden_layers=[[6, 6], [6, 6]]),
        ("hidden_layers", "unique", "[[6, 6], [6, 6]]"),
    ),
    "three layers in a pair": (
        lambda w: following(w, hidden_weight=1, hidden_layers=[[1, 2, 3]]),
        ("distillation.hidden_layers.0", "at most 2 values"),
    ),
    "unknown distance of hidden states": (
        lambda w: following(w, hidden_weight=1, hidden_kind="l2"),
        ("distillation.hidden_kind", "'l2'", "'mse'", "'cosine'"),
    ),
    "a start as a teacher that there is not": (
        lambda w: w.set("student.start", "teacher"),
        ("student.start", "teacher is null", "pretrained"),
    ),
    "a new model that starts as a teacher": (
        lambda w: (w.set("student.start", "teacher"), w.set("student.config", {"num_hidden_layers": 1})),
        ("student", "give start: teacher or config, not both"),
    ),
    "a start as a teacher of another shape": (
        lambda w: (w.set("student.start", "teacher"), w.set("teacher", {"model": small(w), "train": {"max_steps": 1}})),
        ("student.start", "tensors differ", "is [1536] in the student and [96] in the teacher"),
    ),
    "a start as a teacher whose labels are in another order": (
        lambda w: (w.set("student.start", "teacher"), w.set("teacher", {"model": turned(w)})),
        ("student.start", "['equivalent', 'not_equivalent']", "not in the order of mrpc"),
    ),
    "a target below what the floor of these matrices keeps": (
        lambda w: w.set(
            "pruning",
            {"method": "sigmoid_threshold", "density_floor": 0.005, "target_density": 0.00500001}
            | {"penalty": {"kind": "l1", "final_lambda": 1}, "layers": {"include": ["query"]}},
        ),
        ("pruning.target_density=0.00500001", "less than what pruning.density_floor=0.005 keeps of these 6 matrices"),
    ),
    "a fraction that nothing is held out for": (
        lambda w: (
            w.set("task", {"name": "corpus", "kind": "language_modeling"}),
            w.set("data.source", {"kind": "text", "files": ["a.txt"], "dev_files": ["b.txt"]}),
            w.set("data.source.held_out_fraction", 0.1),
        ),
        ("data.source.held_out_fraction: has no effect with dev_files, got 0.1; leave it out",),
    ),
    "label names that are numbers": (
        lambda w: w.set("task", {"name": "stars", "labels": [1, 2]}),
        ("task.labels.0: must be text, got 1", "task.labels.1: must be text, got 2"),
    ),
    "a momentum that never forgets": (
        lambda w: w.set("train.adam_betas", [1.0, 0.999]),
        ("train.adam_betas.0", "less than 1", "1.0"),
    ),
    "a revision of a model that is a folder": (
        lambda w: w.set("student.revision", "v2"),
        ("student.revision: only a model of the hub has a revision", "got 'v2'", "leave it out"),
    ),
    "a model that reads padding": (
        lambda w: w.set("student.model", w.model("fourier", model_type="fnet")),
        ("student.model: model_type 'fnet' reads padding as text", "another family"),
    ),
    "storage that cannot be written": (
        lambda w: w.set("cluster.storage", w.write("file", "") + "/runs"),
        ("cluster.storage", "cannot be written"),
    ),
    "storage that is no URI": (lambda w: w.set("cluster.storage", "s3://[x/y"), ("cluster.storage", "s3://[x/y")),
    "storage of an unknown kind": (lambda w: w.set("cluster.storage", "ftp://x/y"), ("cluster.storage", "ftp://x/y")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_anything_starts(
    case: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = CASES[case]
    spoil(world)
    path = world.write("experiment.yaml", yaml.safe_dump(world.experiment))
    status = main(["train", path])
    errors = capsys.readouterr().err
    assert status == 2, errors
    for words in expected:
        assert words in errors, errors
    assert "Traceback" not in errors
    left = [file for file in (world.folder / "runs").rglob("*") if file.is_file()]
    assert not left, "nothing is half-written"
