"""SWAG: its published files, four sequences per row, and a whole run with teacher, pruning and the other commands."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hub_copy import hub_copy
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from raypp.cli import main
from raypp.config import Columns, DataSettings, DistillationSettings, FilesSource, HubSource, OfficialSource, OwnTask
from raypp.data.features import Features
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.distillation.objective import Objective
from raypp.distillation.teacher import HiddenStateTerm, OnlineTeacher
from raypp.errors import ConfigError
from raypp.evaluation.evaluate import predict
from raypp.kinds import kind_of
from raypp.models.loading import load_pretrained
from raypp.tasks import TASKS, resolve_task
from raypp.training.worker import Worker

SWAG = TASKS["swag"]
HEADER = [
    *("", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"),
    *("ending0", "ending1", "ending2", "ending3", "label"),
]
THINGS = {"kitchen": "cooks the soup", "pool": "swims a lap", "stage": "sings a song", "garden": "plants a tree"}


def swag_rows(count: int, first: int = 0) -> list[list[str]]:
    """Rows in which the right ending is the one that belongs to the context's place."""
    rows = []
    endings = list(THINGS.values())
    for row in range(first, first + count):
        place = list(THINGS)[row % 4]
        turned = endings[row // 4 % 4 :] + endings[: row // 4 % 4]
        context, start = f'Person "{row}", in the {place}, looks around.', "He"
        label = str(turned.index(THINGS[place]))
        rows.append([str(row), "v", "1", f"{context} {start}", context, start, "gold", *turned, label])
    return rows


def write_swag(folder: Path, train: int = 48, dev: int = 24, test: int = 8) -> Path:
    """The three official files; test.csv has no labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", swag_rows(train)), ("val", swag_rows(dev, train)), ("test", swag_rows(test, 500))):
        labelled = name != "test"
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(row if labelled else row[:-1] for row in [HEADER, *rows])
    return folder


def official(folder: Path) -> RawData:
    return open_source(kind_of(SWAG), OfficialSource(kind="official", directory=str(folder)))


def table_of(raw: RawData, split: str) -> pa.Table:
    return pa.Table.from_batches(list(raw.read(split)))


@pytest.fixture(scope="module")
def tokenizer(minilm_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(minilm_dir)


def tokenized(raw: RawData, split: str, tokenizer: Any, max_length: int = 64) -> pa.Table:
    return kind_of(SWAG, DataSettings(max_length=max_length)).tokenize(table_of(raw, split), tokenizer)


def test_official_files_are_read_as_published(tmp_path: Path) -> None:
    raw = official(write_swag(tmp_path))
    assert raw.splits == ("train", "dev", "test")
    assert table_of(raw, "dev").slice(0, 1).to_pylist() == [
        {
            "row": 0,
            "sent1": 'Person "48", in the kitchen, looks around.',
            "sent2": "He",
            **{f"ending{choice}": list(THINGS.values())[choice] for choice in range(4)},
            "label": 0,
        }
    ]
    assert table_of(raw, "test").column("label").to_pylist() == [None] * 8


def test_json_lines_of_the_same_fields_are_the_same_examples(tmp_path: Path) -> None:
    folder = write_swag(tmp_path)
    for name in ("train", "val", "test"):
        with (folder / f"{name}.csv").open(newline="") as stream:
            lines = [json.dumps(record) + "\n" for record in csv.DictReader(stream)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    paths = {split: str(folder / f"{name}.jsonl") for split, name in (("train", "train"), ("dev", "val"))}
    source = FilesSource(kind="files", **paths, test=str(folder / "test.jsonl"))
    raw = open_source(kind_of(resolve_task("swag", source)), source)
    for split in ("train", "dev", "test"):
        assert table_of(raw, split).equals(table_of(official(folder), split))


def test_own_files_may_have_another_number_of_endings(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(
            "story,start,a,b,c,right\nA dog runs.,It,barks,flies,reads,2\n,It,x,y,z,0\n"
        )
    columns = Columns(sent1="story", sent2="start", endings=("a", "b", "c"), label="right")
    source = FilesSource(kind="files", train=f"{tmp_path}/train.csv", dev=f"{tmp_path}/dev.csv", columns=columns)
    task = resolve_task(OwnTask(name="story", kind="multiple_choice"), source)
    assert (task.labels, task.metrics) == (("0", "1", "2"), ("accuracy",))
    table = table_of(open_source(kind_of(task), source), "train")
    assert table.column("ending2").to_pylist() == ["reads", "z"]
    assert table.column("label").to_pylist() == [2, 0]


@pytest.mark.parametrize("endings", [("a", "b"), ("a", "b", "c", "d", "e")])
def test_files_of_swag_have_its_four_endings(endings: tuple[str, ...]) -> None:
    source = FilesSource(kind="files", train="t.csv", dev="d.csv", columns=Columns(endings=endings))
    said = rf"data\.source\.columns\.endings: got {len(endings)} columns, but swag has 4 endings; "
    with pytest.raises(ConfigError, match=said):
        resolve_task("swag", source)


def test_the_hub_has_the_same_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {}
    for split, rows in (("train", swag_rows(6)), ("validation", swag_rows(4, 6)), ("test", swag_rows(3, 9))):
        columns = dict(zip(HEADER[1:], map(list, list(zip(*rows, strict=True))[1:]), strict=True))
        columns["label"] = [-1] * len(rows) if split == "test" else [int(label) for label in columns["label"]]
        features = {name: datasets.Value("string") for name in columns}
        features["label"] = datasets.ClassLabel(names=["0", "1", "2", "3"])
        splits[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    copy = hub_copy(tmp_path, monkeypatch, {"regular": splits})
    raw = open_source(kind_of(SWAG), HubSource(kind="hub", repository=str(copy)))
    files = official(write_swag(tmp_path / "files", train=6, dev=4))
    for split in ("train", "dev"):
        assert table_of(raw, split).equals(table_of(files, split))
    assert table_of(raw, "test").column("label").to_pylist() == [None] * 3


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("label", "4", "train.csv, line 3: label is '4'; allowed: 0, 1, 2, 3"),
        ("label", "", "line 3: the label is empty"),
        ("ending2", "", "line 3: ending2 is ''; allowed: a text"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, column: str, value: str, said: str) -> None:
    folder = write_swag(tmp_path)
    rows = [HEADER, *swag_rows(2)]
    rows[2][HEADER.index(column)] = value
    with (folder / "train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(ConfigError) as caught:
        table_of(official(folder), "train")
    assert said in str(caught.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_swag(tmp_path)
    (folder / "val.csv").write_text("sent1,sent2,ending0,ending1,ending2,label\na,b,c,d,e,0\n")
    with pytest.raises(ConfigError, match=r"val\.csv, line 1: no column 'ending3'"):
        official(folder)


def test_a_row_has_a_sequence_for_each_choice(tmp_path: Path, tokenizer: Any) -> None:
    raw = official(write_swag(tmp_path))
    row = table_of(raw, "dev").to_pylist()[5]
    expected = [tokenizer(row["sent1"], f"{row['sent2']} {row[f'ending{choice}']}") for choice in range(4)]
    features = Features.from_table(tokenized(raw, "dev", tokenizer))
    assert (len(features), features.sequences) == (24, 4)
    batch = features.collate([5, 2], pad_id=0)
    assert batch["input_ids"].shape[:2] == (2, 4)
    assert batch["labels"].tolist() == [row["label"], features.labels[2]]
    for choice, encoded in enumerate(expected):
        real = batch["attention_mask"][0, choice].bool()
        assert batch["input_ids"][0, choice][real].tolist() == encoded["input_ids"]
        assert batch["token_type_ids"][0, choice][real].tolist() == encoded["token_type_ids"]
        assert not batch["input_ids"][0, choice][~real].any()
    assert features.tokens[5] == sum(len(encoded["input_ids"]) for encoded in expected)
    assert features.lengths[5] == 4 * batch["input_ids"].shape[2], "the size of the padded row"


@pytest.mark.parametrize("python", [False, True])
def test_the_ending_of_a_long_choice_survives(minilm_dir: Path, python: bool) -> None:
    from transformers import ByT5Tokenizer

    tokenizer: Any = ByT5Tokenizer() if python else AutoTokenizer.from_pretrained(minilm_dir)
    long, short = " ".join(["door"] * 100), "He opens it"
    columns = {"row": [0], "sent1": [long], "sent2": ["Then"], "label": pa.array([1], pa.int64())}
    columns |= {"ending0": [short], "ending1": ["sits"], "ending2": [f"{long} end"], "ending3": ["runs"]}
    table = kind_of(SWAG, DataSettings(max_length=32)).tokenize(pa.table(columns), tokenizer)
    features = Features.from_table(table)
    batch = features.collate([0], pad_id=0)
    assert np.diff(features.offsets).tolist() == [32, 32, 32, 32]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    specials = tokenizer.num_special_tokens_to_add(pair=True)
    for choice, second in ((0, f"Then {short}"), (1, "Then sits"), (3, "Then runs")):
        room = 32 - specials - len(ids(second))
        found = [i for i in batch["input_ids"][0, choice].tolist() if i not in tokenizer.all_special_ids]
        assert found == ids(long)[:room] + ids(second)
    found = [i for i in batch["input_ids"][0, 2].tolist() if i not in tokenizer.all_special_ids]
    assert found == ids(f"Then {long} end")[-(32 - specials) :], "the context is cut completely, and the end survives"


def test_predictions_are_those_of_transformers_row_by_row(tmp_path: Path, minilm_dir: Path, tokenizer: Any) -> None:
    raw = official(write_swag(tmp_path))
    features = Features.from_table(tokenized(raw, "dev", tokenizer))
    model = load_pretrained(minilm_dir, kind_of(SWAG), seed=3).eval()
    kind = kind_of(SWAG)
    predictions = predict(model, features, kind, 0, Worker(), batch_size=7)
    for index, row in enumerate(table_of(raw, "dev").to_pylist()):
        seconds = [f"{row['sent2']} {row[f'ending{choice}']}" for choice in range(4)]
        inputs = tokenizer([row["sent1"]] * 4, seconds, padding=True, return_tensors="pt")
        logits = model(**{name: value[None] for name, value in inputs.items()}).logits[0]
        np.testing.assert_allclose(predictions.logits[index], logits.detach().numpy(), atol=1e-5)
    right = predictions.logits.argmax(1) == features.labels
    assert kind.metrics(predictions)["accuracy"] == right.mean()


def test_losses_are_those_over_the_choices() -> None:
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    kind = kind_of(SWAG)
    batch = {"labels": labels, "teacher_logits": teacher}
    hard = -torch.log_softmax(logits, 1)[torch.arange(5), labels].sum()
    torch.testing.assert_close(kind.hard_loss_sum(logits, batch), hard)
    targets = torch.softmax(teacher / 2, 1)
    soft = 4 * (targets * (targets.log() - torch.log_softmax(logits / 2, 1))).sum()
    torch.testing.assert_close(kind.soft_loss_sum(logits, batch, 2.0), soft)


def test_the_hidden_loss_of_a_row_is_the_mean_over_its_choices(
    tmp_path: Path, minilm_dir: Path, tokenizer: Any
) -> None:
    features = Features.from_table(tokenized(official(write_swag(tmp_path)), "dev", tokenizer))
    student = load_pretrained(minilm_dir, kind_of(SWAG), seed=1).eval()
    twin, terms = load_pretrained(minilm_dir, kind_of(SWAG), seed=1), {"hidden_loss": HiddenStateTerm(((3, 6),), "mse")}
    teacher = OnlineTeacher(twin, kind_of(SWAG), terms, 384, 1, torch.device("cpu"))
    settings = DistillationSettings(soft_weight=0.0, hard_weight=0.5, hidden_weight=1.0)
    objective = Objective.build(kind_of(SWAG), settings, teacher)
    batch = features.collate([3, 11], pad_id=0)
    found = objective(student, {**batch, **teacher.observe(batch)})["hidden_loss"]
    expected = 0.0
    for row, choice in itertools.product((0, 1), range(4)):
        real = batch["attention_mask"][row, choice].bool()
        one = {name: batch[name][row, choice][real][None, None] for name in ("input_ids", "token_type_ids")}
        states = student(**one, output_hidden_states=True).hidden_states
        expected += (states[3] - states[6]).square().mean().item() / 4
    assert float(found) == pytest.approx(expected, rel=1e-4)


def experiment(folder: Path, encoder: Path, **changes: Any) -> Path:
    settings = {
        "task": "swag",
        "data": {"source": {"kind": "official", "directory": str(folder / "SWAG")}, "max_length": 48},
        "student": {"model": str(encoder)},
        "teacher": {"train": {"max_steps": 3, "batch_size": 8}},
        "distillation": {"soft_weight": 0.7, "hard_weight": 0.2, "hidden_weight": 0.1},
        "pruning": {"method": "topk", "final_density": 0.25, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 4, "batch_size": 8, "log_every_steps": 2},
        "run": "first",
        "cluster": {"workers": 0, "storage": str(folder / "runs")},
        "tracking": {"wandb": "off"},
    }
    file = folder / "swag.yaml"
    file.write_text(yaml.safe_dump(settings | changes))
    return file


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_whole_run_and_the_commands_around_it(
    tmp_path: Path, minilm_dir: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_swag(tmp_path / "SWAG")
    assert main(["train", str(experiment(tmp_path, minilm_dir))]) == 0
    run = tmp_path / "runs" / "swag" / "first"
    result = json.loads((run / "result.json").read_text())
    assert result["headline"] == "eval/accuracy"
    assert result["density"]["linear"] == pytest.approx(0.25, abs=1e-4)
    assert set(result["teacher_metrics"]) == {"eval/accuracy", "eval/exp_entropy"}
    lines = [line.split("\t") for line in (run / "predictions.tsv").read_text().splitlines()]
    assert lines[0] == ["split", "row", "label", "prediction", "logit_0", "logit_1", "logit_2", "logit_3"]
    assert np.mean([line[2] == line[3] for line in lines[1:]]) == result["metrics"]["eval/accuracy"]

    capsys.readouterr()
    assert main(["evaluate", str(run), "--out", str(tmp_path / "out")]) == 0
    assert f"dev: accuracy {result['metrics']['eval/accuracy']:.4f}" in capsys.readouterr().out
    words = ["--task", "swag", "--data", str(tmp_path / "SWAG"), "--split", "test", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(run / "model"), *words]) == 0
    submission = (tmp_path / "out" / "SWAG.tsv").read_text().splitlines()
    assert len(submission) == 9
    assert all(line.split("\t")[1] in SWAG.labels for line in submission[1:])

    assert main(["inspect", str(run)]) == 0
    assert "BertForMultipleChoice" in capsys.readouterr().out
    assert main(["export", str(run), "--to", str(tmp_path / "exported")]) == 0
    assert "a model for AutoModelForMultipleChoice.from_pretrained" in capsys.readouterr().out
    assert type(AutoModelForMultipleChoice.from_pretrained(tmp_path / "exported")).__name__ == "BertForMultipleChoice"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_small_encoder_learns_which_ending_belongs_to_a_context(tmp_path: Path, minilm_dir: Path) -> None:
    write_swag(tmp_path / "SWAG", train=320, dev=64)
    changes = {"teacher": None, "distillation": None, "train": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-4}}
    pruning = {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1}
    assert main(["train", str(experiment(tmp_path, minilm_dir, pruning=pruning, **changes))]) == 0
    result = json.loads((tmp_path / "runs" / "swag" / "first" / "result.json").read_text())
    assert result["metrics"]["eval/accuracy"] > 0.7, "guessing gives 0.25"
