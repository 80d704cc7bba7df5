"""Reading experiments: bases, overrides, and messages that say where, what and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypp.config import OwnTask, SigmoidThresholdPruning, TopKPruning
from raypp.config.fields import is_setting
from raypp.errors import ConfigError
from raypp.load_config import load_experiment, within
from raypp.runs import write_experiment
from raypp.storage import Location
from raypp.yaml_text import dump_yaml, load_yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path for path in (REPOSITORY / "experiments").rglob("*.yaml"))


GOOD = "task: mrpc\nstudent: {model: m}\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY / "experiments")))
def test_every_shipped_experiment_loads_and_says_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_DIR", "/data/glue")
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert path.read_text().startswith("# "), "the first comment says what, why and the command"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY / "experiments")))
def test_what_a_folder_records_is_an_experiment_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLUE_DIR", "/data/glue")
    experiment = load_experiment(path)
    write_experiment(Location.of(tmp_path), experiment, "1234abcd", {"torch": "2.13.0"})
    assert load_experiment(tmp_path / "experiment.yaml") == experiment
    longer = write(tmp_path, "longer.yaml", "name: longer\nbase: experiment.yaml\ntrain: {max_steps: 7}\n")
    train = load_experiment(longer).train
    assert (train.max_steps, train.epochs, train.batch_size) == (7, None, experiment.train.batch_size)


def test_a_setting_is_one_under_some_method_and_kind() -> None:
    for path in (
        "task",
        "task.kind",
        "pruning.penalty.final_lambda",
        "data.source.train",
        "student.config.hidden_size",
    ):
        assert is_setting(path), path
    for path in ("tasks", "pruning.metod", "pruning.method.kind", "train.seed.more", "student.configs.hidden_size"):
        assert not is_setting(path), path


def test_nine_tasks_have_a_dense_a_topk_and_a_soft_file() -> None:
    names = {path.stem for path in SHIPPED if path.parent.name == "glue"}
    tasks = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
    assert names == {f"{task}-{kind}" for task in tasks for kind in ("dense", "topk", "soft")}


def test_a_base_is_merged_key_by_key_and_a_changed_method_starts_anew(tmp_path: Path) -> None:
    write(tmp_path, "base/a.yaml", "task: mrpc\nstudent: {model: m}\npruning: {method: topk, final_density: 0.1}\n")
    topk = write(tmp_path, "topk.yaml", "base: base/a.yaml\npruning: {initial_warmup: 3}\ntrain: {epochs: 2}\n")
    soft = write(tmp_path, "soft.yaml", "base: topk.yaml\npruning: {method: sigmoid_threshold}\n")
    experiment = load_experiment(topk)
    assert isinstance(experiment.pruning, TopKPruning)
    assert (experiment.pruning.final_density, experiment.pruning.initial_warmup) == (0.1, 3)
    assert experiment.train.epochs == 2
    changed = load_experiment(soft).pruning
    assert isinstance(changed, SigmoidThresholdPruning)
    assert changed.initial_warmup == 1, "the fields of another method do not carry over"


def test_of_two_ways_to_say_one_thing_the_later_holds(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\ntrain: {epochs: 2, warmup_steps: 7}\n")
    train = load_experiment(path, ["train.max_steps=5"]).train
    assert (train.epochs, train.max_steps, train.warmup_steps, train.warmup_fraction) == (None, 5, 7, None)
    assert "give epochs or max_steps, not both" in problems_of(
        write(tmp_path, "b.yaml", path.read_text() + "  \n"), "train={epochs: 1, max_steps: 2}"
    )


def test_another_spelling_of_the_same_method_keeps_its_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\npruning: {method: topk, final_density: 0.05}\n")
    for spelling in ("topK", "TopK", "topk"):
        pruning = load_experiment(path, [f"pruning.method={spelling}"]).pruning
        assert pruning is not None
        assert pruning.requested_density == 0.05


def test_an_override_that_a_later_one_undoes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\npruning: {method: topk, final_density: 0.15}\n")
    for later in (
        "pruning.method=magnitude",
        "pruning={method: magnitude}",
        "pruning={final_density: 0.3}",
        "pruning=null",
    ):
        said = problems_of(path, "pruning.final_density=0.05", later)
        assert "'pruning.final_density=0.05': is overwritten by a later override" in said
    pruning = load_experiment(path, ["pruning.method=magnitude", "pruning.final_density=0.05"]).pruning
    assert pruning is not None
    assert (pruning.method, pruning.requested_density) == ("magnitude", 0.05)


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (["train.epochs=1", "train.epochs=2"], "train.epochs", 2),
        (["train.epochs=2", "train.max_steps=100"], "train.max_steps", 100),
        (["train.epochs=null", "train.max_steps=100"], "train.max_steps", 100),
        (["train.max_steps=100", "train.epochs=null"], "train.max_steps", 100),
        (["pruning=null", "pruning.method=topk", "pruning.final_density=0.1"], "pruning.final_density", 0.1),
        (["pruning={method: magnitude}", "pruning.final_density=0.05"], "pruning.final_density", 0.05),
        (["pruning={method: magnitude}", "pruning.method=topk"], "pruning.method", "topk"),
        (["data.source=null", "data.source.kind=synthetic"], "data.source.kind", "synthetic"),
        (["task={name: x, labels: [a, b]}", "task.labels=[c, d]"], "task.labels", ["c", "d"]),
    ],
)
def test_overrides_that_go_together(tmp_path: Path, overrides: list[str], field: str, value: Any) -> None:
    path = write(tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\npruning: {method: topk, final_density: 0.15}\n")
    assert within(load_experiment(path, overrides).model_dump(mode="json"), field.split(".")) == value


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\ntrain: {learning_rate: 3e-5, weight_decay: 1e-2}\n"
    )
    train = load_experiment(path, ["train.adam_epsilon=1e-6"]).train
    assert (train.learning_rate, train.weight_decay, train.adam_epsilon) == (3e-5, 1e-2, 1e-6)


def test_the_originals_spellings_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\npruning: {method: topK}\n")
    assert isinstance(load_experiment(path).pruning, TopKPruning)
    soft = load_experiment(path, ["pruning={method: sigmoied_threshold}"]).pruning
    assert isinstance(soft, SigmoidThresholdPruning)


def test_paths_alone_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    text = "task: mrpc\nstudent: {model: ~/m}\ncluster: {storage: '${WHERE}/runs'}\ntracking: {project: '${WHERE}'}\n"
    experiment = load_experiment(write(tmp_path, "a.yaml", text))
    assert experiment.student.model == "/home/me/m"
    assert experiment.cluster.storage == "/data/runs"
    assert experiment.tracking.project == "${WHERE}", "not a path: taken as it is written"


def test_all_problems_come_in_one_message_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "bad.yaml",
        "task: mrpc\nstudent: {modle: x}\npruning: {method: topk, final_densty: 0.1}\ntrain: {batch_size: many}\n",
    )
    message = problems_of(path, "evaluation.select=bst")
    assert f"{path}:2: student.model: is missing" in message
    assert f"{path}:2: student.modle: there is no such setting (got 'x'); did you mean 'model'?" in message
    assert "did you mean 'final_density'?" in message
    assert f"{path}:4: train.batch_size: must be a whole number, got 'many'" in message
    assert "override: evaluation.select: must be 'last' or 'best', got 'bst'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: [", "is not valid YAML"),
        ("- a\n- b\n", "an experiment is a mapping"),
        ("task: mrpc\ntask: cola\nstudent: {model: m}\n", ":2: task: duplicate key"),
        ("base: nowhere.yaml\n", "nowhere.yaml: cannot be read"),
        ("base: a.yaml\n", "base: circular base: "),
        ("base: 3\n", "base: must be the path"),
        ("task: mrpc\nstudent: {model: '${UNSET_VARIABLE}/m'}\n", "environment variable UNSET_VARIABLE is not set"),
        (GOOD + "pruning: {method: random}\n", "pruning.method: must be one of topk, magnitude"),
        ("task: mrpc\nstudent: {model: m}\npruning: {final_density: 0.1}\n", "pruning.method: is missing"),
        ("task: mrpc\nstudent: {model: m}\ndata: {source: {kind: web}}\n", "data.source.kind: must be one of official"),
        ("task: mrpc\nstudent: {model: m}\ntrain: {epochs: true}\n", "train.epochs: must be a number, got True"),
        ("task: mrpc\nstudent: {model: m}\nteacher: {}\n", "teacher: give model"),
        ("task: mrpc\nstudent: {model: m}\nname: 'a/b'\n", "name: "),
        (GOOD + "pruning: {method: magnitude, penalty: {kind: l1}}\n", "pruning.penalty: there is no such setting"),
        (GOOD + "pruning: {method: topk, initial_density: 0.1}\n", "final_density must not exceed initial_density"),
        (GOOD + "pruning: {method: topk, target_density: 0.1}\n", "pruning.target_density: there is no such setting"),
        (GOOD + "pruning: {method: l0, target_density: 1.0}\n", "pruning.target_density: must be less than 1, got 1.0"),
        (
            GOOD + "pruning: {method: sigmoid_threshold, target_density: 0.004}\n",
            "target_density must be above density_floor, the minimum density of each matrix, got 0.004 with a",
        ),
        (
            GOOD + "pruning: {method: sigmoid_threshold, target_density: 0.1, final_threshold: 0.0}\n",
            "final_threshold must be greater than 0 with a target_density",
        ),
        (
            GOOD + "pruning: {method: threshold, target_density: 0.1, initial_threshold: 0.2}\n",
            "initial_threshold has no effect with a target_density",
        ),
        (
            GOOD + "pruning: {method: l0, target_density: 0.1, penalty: {kind: l0, final_lambda: 0}}\n",
            "it must be greater than 0, got 0.0",
        ),
        (
            GOOD + "pruning: {method: l0, target_density: 0.1, penalty: {kind: l2, final_lambda: 1}}\n",
            "pruning.penalty.kind: must be 'l1' or 'l0', got 'l2'",
        ),
        ("task: mrpc\nstudent: {model: m}\ncluster: {workers: [3, 1]}\n", "1 <= min <= max, got [3, 1]"),
        ("task: mrpc\nstudent: {model: {{model}}}\n", ":2: student.model: a key must be text"),
        ("task: mrpc\x07\n", "a.yaml: is not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems_of(write(tmp_path, "a.yaml", text))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.source.trian=a", "data.source.trian: there is no such setting (got 'a'); did you mean 'train'?"),
        ("data.source.columns.labl=x", "data.source.columns.labl: there is no such setting (got 'x'); did you mean"),
        ("data.source.quotes=foo", "data.source.quotes: must be 'csv' or 'plain', got 'foo'"),
        ("pruning={method: topk, threshold: 1}", "pruning.threshold: there is no such setting (got 1); allowed here: "),
        (
            "sweep.space={pruning.final_density: {choices: [1]}}",
            "sweep.space.pruning.final_density.choices: there is no such setting (got [1]); did you mean 'choice'?",
        ),
        (
            "sweep.space={pruning.final_density: [1]}",
            "sweep.space.pruning.final_density: must be a section of settings, got [1]; allowed in it: choice, grid",
        ),
        ("sweep.space={train.seed: {choice: []}}", "sweep.space.train.seed.choice: must have at least 1 value, got []"),
        ("cluster.workers=many", "cluster.workers: must be a whole number or a list, got 'many'"),
        ("cluster.workers=[1, 2, 3]", "cluster.workers: must have at most 2 values, got [1, 2, 3]"),
        ("cluster.workers=[2]", "cluster.workers: has too few values, got [2]"),
        ("cluster.gpus_per_worker=2", "cluster.gpus_per_worker: a worker uses at most 1 GPU, got 2.0"),
        ("cluster.cpus_per_worker=all", "cluster.cpus_per_worker: must be a number or 'auto', got 'all'"),
        ("train.micro_batches=0", "train.micro_batches: must be greater than or equal to 1 or 'auto', got 0"),
        ("train=3", "train: must be a section of settings, got 3"),
        ("student.layers=3", "student.layers: must be a list, got 3"),
        ("student.layers=[a]", "student.layers.0: must be a whole number, got 'a'"),
        ("student.config=3", "student.config: must be a section of settings or text, got 3"),
        ("name=a b", "name: must begin with a letter or a digit and have only letters, digits and . _ -, got 'a b'"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line_that_names_it(tmp_path: Path, override: str, expected: str) -> None:
    text = (
        "task: {name: t, labels: [a, b]}\nstudent: {model: m, layers: [1]}\ncluster: {}\n"
        "data: {source: {kind: files, train: a, dev: b}}\nsweep: {space: {}}\n"
    )
    message = problems_of(write(tmp_path, "a.yaml", text), "sweep.space={train.seed: {choice: [1]}}", override)
    assert message.startswith(f"override: {expected}")
    assert "\n" not in message.strip()


def test_a_leading_zero_is_not_octal(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", GOOD)
    assert [load_experiment(path, [f"train.seed={text}"]).train.seed for text in ("010", "08", "-0")] == [10, 8, 0]


TEXTS = ("1e5", "08", "010", "off", "null", "1:30", "2026-01-31", "0x1f", "1_000", ".5", "~", "a: b", "", "é")


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    text = f"task: {{name: t, labels: {list(TEXTS)}}}\nstudent: {{model: m}}\n"
    task = load_experiment(write(tmp_path, "a.yaml", text)).task
    assert isinstance(task, OwnTask)
    assert task.labels == TEXTS
    written = {"texts": list(TEXTS), "numbers": [10, 1e-5, 1e22, math.inf], "others": [True, None]}
    assert load_yaml(dump_yaml(written)) == written
    assert yaml.safe_load(dump_yaml(written)) == written, "as other programs read it, too"


def test_an_override_must_name_a_field(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: mrpc\nstudent: {model: m}\n")
    assert "an override is written section.field=value" in problems_of(path, "epochs")
    assert "not a section with fields" in problems_of(path, "task.name.x=1")
