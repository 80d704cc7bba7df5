"""Task-agnostic distillation under faults: text that is streamed in windows and masked anew in each epoch goes on where
it was, with the same blocks in the same order and the same masks.

Real runs on real sentences of a real encoder with its default dropout. A loss is that of its step's blocks under its
step's masks, so equal losses, step by step, are equal blocks and masks.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from struck_runs import Fault, Recovery, Undisturbed, assert_recovers, is_in_the_middle, kill, to_driver
from whole_runs import (
    TEST_SECONDS,
    assert_tidy,
    copy_tokenizer,
    losses,
    only_run,
    resumed_after,
    run_command,
    started,
    steps_of,
    wait_for,
)

from raypp.config import LanguageModelingTask, TextSource
from raypp.corpus.blocks import TOKEN_COUNTS
from raypp.corpus.streamed import GROUP_BLOCKS
from raypp.kinds import kind_of
from raypp.models.loading import load_pretrained
from raypp.store import ABANDONED_AFTER_SECONDS
from raypp.tasks import resolve_task

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]

TASK = {"name": "sentences", "kind": "language_modeling"}
WINDOW_BATCHES = 7
BATCH_SIZE = 24
STEPS = 48
MIDDLE = 33  # steps: in the second epoch, and not at the beginning of a window


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """MiniLM with the head of a masked language model, which it is published without."""
    folder = tmp_path_factory.mktemp("teacher")
    task = resolve_task(LanguageModelingTask.model_validate(TASK), TextSource(kind="text", files=("some.txt",)))
    load_pretrained(minilm_dir, kind_of(task), seed=7).save_pretrained(folder)
    copy_tokenizer(minilm_dir, folder)
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, teacher: Path, glue_dir: Path) -> Path:
    """Two epochs over more than one row group, in several windows."""
    folder = tmp_path_factory.mktemp("faults")
    source = {"kind": "glue_text", "directory": str(glue_dir), "tasks": ["mrpc"], "held_out_fraction": 0.05}
    values = {
        "name": "distilled",
        "task": TASK,
        "data": {
            "source": source,
            "max_length": 16,
            "max_train_rows": 345,
            "window_blocks": WINDOW_BATCHES * BATCH_SIZE,
        },
        "student": {"model": str(teacher), "layers": [0, 2, 4]},
        "teacher": {"model": str(teacher)},
        "distillation": {"soft_weight": 5.0, "hard_weight": 2.0, "cosine_weight": 1.0},
        "train": {
            "max_steps": STEPS,
            "batch_size": BATCH_SIZE,
            "micro_batches": 2,
            "learning_rate": 5.0e-5,
            "log_every_steps": 1,
        },
        "evaluation": {"every_steps": 24},
        "cluster": {
            "workers": 1,
            "cpus_per_worker": 1,
            "checkpoint_every_steps": 6,
            "store": str(folder / "store"),
        },
        "tracking": {"wandb": "off"},
    }
    path = folder / "distilled.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> Undisturbed:
    return Undisturbed(experiment)


def blocks_of(store: Path) -> dict[str, tuple[pa.Table, bytes]]:
    """The blocks of every corpus in a store, in the source's order, and the counts of its tokens, by key."""
    found = {}
    for manifest in store.glob("v1/features/*/*/manifest.json"):
        names = [name for name, _ in json.loads(manifest.read_text())["extra"]["part_blocks"]]
        key = manifest.parts[-3]
        assert key not in found, "one build of each"
        tables = [pq.read_table(manifest.parent / name) for name in names]
        found[key] = pa.concat_tables(tables), (manifest.parent / TOKEN_COUNTS).read_bytes()
    return found


FAULTS = {
    "a train worker is killed": Fault(kill("RayTrainWorker")),
    "two train workers are killed at once": Fault(kill("RayTrainWorker", 2), workers=2),
    "the driver is killed": Fault(to_driver(signal.SIGKILL), ends=-signal.SIGKILL),
    "the driver of a run without workers is killed": Fault(to_driver(signal.SIGKILL), workers=0, ends=-signal.SIGKILL),
    "SIGTERM": Fault(to_driver(signal.SIGTERM), ends=130, saves=True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_in_its_second_epoch(
    name: str,
    experiment: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    fault = FAULTS[name]
    assert_recovers(fault, experiment, undisturbed(fault.workers), tmp_path, MIDDLE).tell(record_property)
    (trained, _), (held_out, _) = sorted(blocks_of(experiment.parent / "store").values(), key=lambda x: -len(x[0]))
    batches = len(trained) // BATCH_SIZE
    assert len(trained) > GROUP_BLOCKS, "more than one row group"
    assert WINDOW_BATCHES < batches < MIDDLE - 6, "its second epoch, in several windows"
    assert len(held_out) > 0


def test_a_run_goes_on_with_another_number_of_workers(
    experiment: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Whoever computes them, the steps are the same ones."""
    words = ("train", experiment, f"cluster.storage={tmp_path}")
    with started(*words, "cluster.workers=1") as command:
        wait_for(lambda: is_in_the_middle(tmp_path, MIDDLE), "the middle of the run")
        to_driver(signal.SIGKILL)(command, tmp_path)
        command.end()
    output = run_command(*words, "cluster.workers=2")
    resumed = resumed_after(output)
    assert MIDDLE - 12 < resumed <= steps_of(tmp_path)
    expected, run = undisturbed(1), only_run(tmp_path)
    assert run.name == expected.name
    found, wanted = losses(run), losses(expected)
    assert len(found) == len(wanted) == STEPS
    assert found[:resumed] == wanted[:resumed]
    np.testing.assert_allclose(found[resumed : resumed + 10], wanted[resumed : resumed + 10], rtol=2e-4)
    np.testing.assert_allclose(found, wanted, rtol=1e-2)
    neighbours = np.abs(np.diff(wanted)) / wanted[:-1]
    assert np.median(neighbours) > 1e-2, "another batch has another loss"
    assert_tidy(tmp_path, experiment.parent / "store")


# --- the corpus ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path) -> Path:
    """Real sentences, over and over, in other words each time: seconds of cutting."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    text = (glue_dir / "SST-2" / "train.tsv").read_text()
    path.write_text("\n".join(text.replace("the", word) for word in ("the", "a", "that")))
    return path


@pytest.fixture(scope="module")
def cut(experiment: Path, corpus: Path) -> dict[str, tuple[pa.Table, bytes]]:
    """What an undisturbed command prepares."""
    store = experiment.parent / "cut"
    run_command("prepare", experiment, *cutting(corpus, store))
    return blocks_of(store)


def cutting(corpus: Path, store: Path) -> tuple[str, ...]:
    source = {"kind": "text", "files": [str(corpus)], "held_out_fraction": 0.05}
    data = ("data.max_train_rows=null", f"data.source={json.dumps(source)}")
    return (*data, f"cluster.store={store}", f"cluster.storage={store.parent / 'runs'}")


def age(build: Path) -> None:
    """As if nothing had been written to a build for more than a day."""
    seconds = time.time() - ABANDONED_AFTER_SECONDS - 60
    aged = build.rename(build.with_name(f"{int(seconds * 1000):013d}-{build.name.partition('-')[2]}"))
    for file in aged.iterdir():
        os.utime(file, (seconds, seconds))


@pytest.mark.parametrize(
    ("title", "number", "ends"),
    [("_cut_part", signal.SIGKILL, 0), (None, signal.SIGKILL, -signal.SIGKILL), (None, signal.SIGTERM, 130)],
    ids=["a process of Ray Data is killed", "the driver is killed", "SIGTERM"],
)
def test_what_ends_while_a_corpus_is_cut_changes_no_block(
    title: str | None,
    number: signal.Signals,
    ends: int,
    experiment: Path,
    corpus: Path,
    cut: dict[str, tuple[pa.Table, bytes]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    words = ("prepare", experiment, *cutting(corpus, tmp_path / "store"))
    with started(*words) as command:
        victim = command.one_of("_cut_part")
        os.kill(victim if title else command.process.pid, number)
        began = time.monotonic()
        status, output = command.end()
    assert status == ends, output
    if ends:
        assert not list(tmp_path.rglob("manifest.json")), "nothing is believed to be whole"
        builds = list(tmp_path.glob("store/v1/*/*/*"))
        assert len(builds) == (1 if number == signal.SIGKILL else 0), "only who is killed leaves something"
        for build in builds:  # a younger one may be at work: it is left for a day
            age(build)
        began = time.monotonic()
        run_command(*words)
    Recovery(time.monotonic() - began, 0).tell(record_property)
    found = blocks_of(tmp_path / "store")
    assert found.keys() == cut.keys()
    for key, (table, counts) in cut.items():
        assert len(table) > 1000
        assert found[key][0] == table, "the same blocks, in the source's order"
        assert found[key][1] == counts
    assert_tidy(tmp_path)


# --- what is not a death ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loss_that_is_not_finite_ends_a_run_at_once(workers: int, experiment: Path, tmp_path: Path) -> None:
    # So small an epsilon is 0 in float32: Adam divides by it for every word that no batch has had.
    how = (f"cluster.storage={tmp_path}", f"cluster.workers={workers}", "train.adam_epsilon=1e-60")
    with started("train", experiment, *how) as command:
        status, output = command.end()
    assert status == 1, output
    assert output.count("the loss or the gradient is not finite") == 1
    assert "resumes after" not in output, "nothing is tried again"
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("result.json"))
    assert_tidy(tmp_path, experiment.parent / "store")
