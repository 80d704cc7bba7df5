"""Preparation on Ray: the same features and logits as without it, from the store the second time, and plain errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypp.cluster.prepare import PART_ROWS, TeacherLogits, _actors, featurize, logits_key
from raypp.config import DataSettings, OfficialSource
from raypp.data.features import Features
from raypp.data.sources import open_source
from raypp.errors import ConfigError, RunFailed
from raypp.kinds import kind_of
from raypp.storage import Location
from raypp.store import Artifact, Store
from raypp.tasks import find_task

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

MRPC = find_task("mrpc")
MAX_LENGTH = 44  # cuts some pairs of MRPC, and is no multiple of 8
KIND = kind_of(MRPC, DataSettings(max_length=MAX_LENGTH))
NUMBER = kind_of(find_task("stsb"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(Location.of(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def raw(glue_dir: Path) -> Any:
    return open_source(kind_of(MRPC), OfficialSource(kind="official", directory=str(glue_dir / "MRPC")))


@pytest.fixture(scope="module")
def dev(raw: Any, minilm_dir: Path, store: Store, ray_session: None) -> Artifact:
    return featurize(raw, "dev", KIND, str(minilm_dir), store, ignore)


def ignore(done: int, total: int) -> None:
    """Nobody is watching."""


def refuse(done: int, total: int) -> None:
    raise AssertionError("nothing is to be computed")


def tokenized_here(raw: Any, split: str, folder: Path) -> pa.Table:
    from transformers import AutoTokenizer

    table = pa.Table.from_batches(raw.read(split))
    return KIND.tokenize(table, AutoTokenizer.from_pretrained(folder))


def test_features_are_those_made_without_ray_and_are_kept(
    raw: Any, dev: Artifact, minilm_dir: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, int]] = []
    made = featurize(raw, "train", KIND, str(minilm_dir), store, lambda *numbers: calls.append(numbers))
    assert capfd.readouterr() == ("", "")
    expected = tokenized_here(raw, "train", minilm_dir)
    assert made.read_table() == expected
    assert len(made.parts) == -(-expected.num_rows // PART_ROWS[0]) > 1
    assert made.extra == {"max_length": MAX_LENGTH, "pad_token_id": 0}
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (expected.num_rows, expected.num_rows)
    assert len(calls) == len(made.parts)

    assert store.find("features", made.key) == made
    assert dev.key != made.key


def test_damaged_features_are_made_again(raw: Any, minilm_dir: Path, tmp_path: Path) -> None:
    store = Store(Location.of(tmp_path))
    broken = featurize(raw, "dev", KIND, str(minilm_dir), store, ignore)
    Path((broken.location / broken.parts[0]).path).write_bytes(b"")
    assert store.find("features", broken.key) is None
    rebuilt = featurize(raw, "dev", KIND, str(minilm_dir), store, ignore)
    assert rebuilt.location != broken.location
    assert rebuilt.read_table() == tokenized_here(raw, "dev", minilm_dir)
    assert not broken.location.is_folder()


class BadSecondBatch:
    """A source whose second batch cannot be read."""

    def fingerprint(self, split: str) -> str:
        return "bad"

    def read(self, split: str) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"row": [0], "sentence1": ["a"], "sentence2": ["b"], "label": [1]})
        raise ConfigError("data.source: train.tsv line 2: 3 fields instead of 5")


def test_row_that_cannot_be_read_leaves_nothing_behind(minilm_dir: Path, tmp_path: Path) -> None:
    raw: Any = BadSecondBatch()
    with pytest.raises(ConfigError, match=r"train\.tsv line 2"):
        featurize(raw, "train", KIND, str(minilm_dir), Store(Location.of(tmp_path)), ignore)
    assert Location.of(tmp_path).files() == []


def test_store_that_cannot_be_written_is_named(raw: Any, minilm_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(Location.of(tmp_path / "file" / "store"))
    with pytest.raises(ConfigError, match=rf"cluster\.store: {tmp_path}/file/store"):
        featurize(raw, "dev", KIND, str(minilm_dir), store, ignore)


@pytest.fixture(scope="module")
def teacher(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with a head for two labels, and with its default dropout."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm_dir, id2label={0: "equivalent", 1: "not_equivalent"}, label2id={"equivalent": 0, "not_equivalent": 1}
    )
    assert model.config.hidden_dropout_prob > 0
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    return folder


def forward_row_by_row(folder: Path, table: pa.Table, names: tuple[str, ...]) -> np.ndarray:
    """The reference: every row alone, unpadded."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [
            model(**{name: torch.tensor([row[name]]) for name in names}).logits[0].numpy() for row in table.to_pylist()
        ]
    return np.stack(logits)


def logits_of(artifact: Artifact) -> np.ndarray:
    return np.stack(artifact.read_table().column("logits").to_numpy())


def test_teacher_logits_are_those_of_a_direct_forward_pass(dev: Artifact, teacher: Path, store: Store) -> None:
    calls: list[tuple[int, int]] = []
    logits = TeacherLogits.of(dev, KIND, teacher, "teacher")
    assert logits.find(store) is None
    made = logits.make(store, lambda *numbers: calls.append(numbers))
    table = made.read_table()
    assert table.column("row").to_pylist() == dev.read_table().column("row").to_pylist()
    assert table.schema.field("logits").type == pa.list_(pa.float32())
    reference = forward_row_by_row(teacher, dev.read_table(), ("input_ids", "token_type_ids"))
    assert np.ptp(reference[:, 0]) > 0.1
    np.testing.assert_allclose(logits_of(made), reference[:, ::-1], rtol=0, atol=1e-5)
    assert calls[-1] == (408, 408)

    assert TeacherLogits.of(dev, KIND, teacher, "teacher").find(store) == made
    features = Features.from_table(dev.read_table()).with_teacher_logits(made.read_table())
    assert features.collate([3], 0)["teacher_logits"].shape == (1, 2)


def test_logits_key_changes_with_each_of_its_parts(dev: Artifact) -> None:
    train = replace(dev, key="train")
    keys = [
        logits_key(dev, "teacher", [0, 1]),
        logits_key(train, "teacher", [0, 1]),
        logits_key(dev, "another", [0, 1]),
        logits_key(dev, "teacher", [1, 0]),
    ]
    assert len(set(keys)) == len(keys)


def tiny_distilbert(folder: Path, **changes: Any) -> Path:
    """A random model of a family without token types, with one output."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(1)
    sizes = {"vocab_size": 30522, "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2} | changes
    DistilBertForSequenceClassification(DistilBertConfig(num_labels=1, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("nodes", "gpus", "actors"),
    [
        ([{"CPU": 8.0}], False, (2, {"num_cpus": 4})),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], False, (4, {"num_cpus": 4})),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], True, (2, {"num_gpus": 1})),
        ([{"CPU": 1.0, "GPU": 2.0}], True, (1, {"num_gpus": 1})),
        # A cluster that autoscales starts the first node for the one actor that waits.
        ([{"CPU": 8.0}], True, (1, {"num_gpus": 1})),
        ([{}], True, (1, {"num_gpus": 1})),
        ([{}], False, (1, {"num_cpus": 1})),
    ],
)
def test_the_teacher_is_on_gpus_if_they_are_asked_for_and_never_on_cpus_in_their_place(
    nodes: list[dict[str, float]], gpus: bool, actors: tuple[int, dict[str, int]]
) -> None:
    assert _actors(nodes, 100, gpus) == actors


def test_teacher_without_token_types(dev: Artifact, store: Store, tmp_path: Path) -> None:
    folder = tiny_distilbert(tmp_path)
    made = TeacherLogits.of(dev, NUMBER, folder, "tiny").make(store, ignore)
    reference = forward_row_by_row(folder, dev.read_table(), ("input_ids",))
    np.testing.assert_allclose(logits_of(made), reference, rtol=0, atol=1e-5)


def test_workers_config_error_arrives_as_it_was(dev: Artifact, store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = tiny_distilbert(tmp_path) / "model.safetensors"
    save_file(load_file(weights) | {"classifier.bias": torch.tensor([torch.nan])}, weights, {"format": "pt"})
    logits = TeacherLogits.of(dev, NUMBER, tmp_path, "not finite")
    with pytest.raises(ConfigError) as caught:
        logits.make(store, ignore)
    assert type(caught.value) is ConfigError
    assert caught.value.problems == ("teacher.model: its logits for row 0 are not finite",)
    assert logits.find(store) is None


def test_other_failures_of_a_worker_are_told_in_one_line(dev: Artifact, store: Store, tmp_path: Path) -> None:
    folder = tiny_distilbert(tmp_path, vocab_size=200)  # MRPC's ids are beyond it
    with pytest.raises(RunFailed, match=r"^teacher logits: a worker failed: IndexError: index out of range in self$"):
        TeacherLogits.of(dev, NUMBER, folder, "too small").make(store, ignore)


def test_teachers_that_cannot_teach_are_refused_before_any_worker_starts(
    dev: Artifact, minilm_dir: Path, teacher: Path, store: Store
) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.model: .* is not fine-tuned, because it lacks classifier"):
        TeacherLogits.of(dev, KIND, minilm_dir, "encoder").make(store, refuse)
    with pytest.raises(ConfigError, match=r"teacher\.model: the model's labels .* are not the labels of mnli"):
        TeacherLogits.of(dev, kind_of(find_task("mnli")), teacher, "teacher")
