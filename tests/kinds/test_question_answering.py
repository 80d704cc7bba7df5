"""SQuAD: its published files, windows, answers, and a whole run with teacher, pruning and the other commands."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hub_copy import hub_copy
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from raypp.cli import main
from raypp.config import (
    AnswerSettings,
    DataSettings,
    EvaluationSettings,
    FilesSource,
    HubSource,
    OfficialSource,
    OwnTask,
)
from raypp.data.features import Features
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.errors import ConfigError
from raypp.evaluation.answer_metrics import answer_metrics
from raypp.evaluation.evaluate import predict
from raypp.evaluation.predictions import Predictions
from raypp.kinds import kind_of
from raypp.kinds.answers import best_spans
from raypp.kinds.question_answering import QuestionAnswering
from raypp.models.loading import load_pretrained
from raypp.tasks import TASKS, find_task, resolve_task
from raypp.training.worker import Worker

SQUAD, SQUAD_V2 = TASKS["squad"], TASKS["squad_v2"]
PEOPLE = ("Anna", "Bruno", "Carla", "Denis", "Elena", "Felix")
COLORS = ("red", "blue", "green", "black", "white", "yellow")
THINGS = ("car", "boat", "hat", "door")


def paragraph(number: int, version: str) -> dict[str, Any]:
    """A context that says whose thing has which colour, and a question about one of them; every third one of version
    2.0 is about a thing that the context does not name."""
    parts, answers = [], {}
    context = ""
    for place in range(3):
        person, color = PEOPLE[(number + place) % 6], COLORS[(number * 5 + place * 2) % 6]
        thing = THINGS[(number // 3 + place) % 4]
        begin = f"The {thing} of {person} is "
        answers[person, thing] = (color, len(context) + len(begin))
        parts.append(f"{begin}{color}. ")
        context += parts[-1]
    (person, thing), (color, start) = list(answers.items())[number % 3]
    question: dict[str, Any] = {"id": f"{version}-{number}", "question": f"What color is the {thing} of {person}?"}
    question["answers"] = [{"text": color, "answer_start": start}]
    if version == "2.0":
        question["is_impossible"] = number % 3 == 2
        if question["is_impossible"]:
            question |= {"question": f"What color is the piano of {person}?", "answers": []}
            question["plausible_answers"] = [{"text": color, "answer_start": start}]
    return {"context": context.strip(), "qas": [question]}


def write_squad(folder: Path, version: str = "1.1", train: int = 48, dev: int = 24) -> Path:
    """The two official files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", range(train)), ("dev", range(train, train + dev))):
        paragraphs = [paragraph(number, version) for number in numbers]
        articles = [{"title": "t", "paragraphs": paragraphs[:5]}, {"title": "u", "paragraphs": paragraphs[5:]}]
        text = json.dumps({"version": version, "data": articles})
        (folder / f"{split}-v{version}.json").write_text(text)
    return folder


def official(folder: Path, task: str = "squad") -> RawData:
    return open_source(kind_of(TASKS[task]), OfficialSource(kind="official", directory=str(folder)))


def table_of(raw: RawData, split: str) -> pa.Table:
    return pa.Table.from_batches(list(raw.read(split)))


def kind_with(max_length: int, stride: int = 128, task: Any = SQUAD, **answers: Any) -> QuestionAnswering:
    evaluation = EvaluationSettings(answers=AnswerSettings(**answers))
    kind = kind_of(task, DataSettings(max_length=max_length, stride=stride), evaluation)
    assert isinstance(kind, QuestionAnswering)
    return kind


@pytest.fixture(scope="module")
def tokenizer(minilm_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(minilm_dir)


def long_examples(answer: str = "zebra") -> pa.Table:
    """A context of 60 words, 12 of them before the answer, and a short context."""
    words = [f"w{number}" for number in range(60)]
    words[12] = answer
    contexts = [" ".join(words), f"One {answer} only."]
    labels = [[{"text": answer, "start": context.index(answer)}] for context in contexts]
    columns = {"row": [0, 1], "id": ["long", "short"], "question": ["Which animal?", "Which one?"], "context": contexts}
    return pa.table({**columns, "label": pa.array(labels, kind_with(64).label_type)})


@pytest.mark.parametrize(("task", "version"), [("squad", "1.1"), ("squad_v2", "2.0")])
def test_official_files_are_read_as_published(tmp_path: Path, task: str, version: str) -> None:
    raw = official(write_squad(tmp_path, version), task)
    assert raw.splits == ("train", "dev")
    rows = table_of(raw, "dev").to_pylist()
    questions = [paragraph(number, version) for number in range(48, 72)]
    for row, given in zip(rows, questions, strict=True):
        question = given["qas"][0]
        assert (row["id"], row["question"], row["context"]) == (question["id"], question["question"], given["context"])
        expected = [{"text": answer["text"], "start": answer["answer_start"]} for answer in question["answers"]]
        assert row["label"] == expected
        assert all(row["context"][a["start"] :].startswith(a["text"]) for a in row["label"])
    assert any(not row["label"] for row in rows) == (version == "2.0")


@pytest.mark.parametrize(("name", "found"), [("SQuAD", "squad"), ("squad v1.1", "squad"), ("SQuAD-v2", "squad_v2")])
def test_usual_spellings(name: str, found: str) -> None:
    assert find_task(name) is TASKS[found]


def test_own_files_have_the_hubs_columns(tmp_path: Path) -> None:
    records = []
    for number in range(6):
        given = paragraph(number, "1.1")
        (answer,) = given["qas"][0]["answers"]
        answers = {"text": [answer["text"]], "answer_start": [answer["answer_start"]]}
        question = given["qas"][0]
        records.append({**{name: question[name] for name in ("id", "question")}, "context": given["context"]})
        records[-1]["answers"] = answers
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = FilesSource(kind="files", train=f"{tmp_path}/train.jsonl", dev=f"{tmp_path}/dev.jsonl")
    task = resolve_task(OwnTask(name="colors", kind="question_answering"), source)
    table = table_of(open_source(kind_of(task), source), "train")
    assert table.column("label").to_pylist()[0] == [{"text": "red", "start": answer_start(records[0])}]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": "red", "answer_start": 4},
        {"text": None, "answer_start": None},
        {"text": ["red", "blue"], "answer_start": [4]},
        "red",
    ],
)
def test_answers_of_another_form_are_refused_with_their_line(tmp_path: Path, answers: Any) -> None:
    record = {"id": "a", "question": "b", "context": "The red one.", "answers": answers}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    source = FilesSource(kind="files", train=f"{tmp_path}/train.jsonl", dev=f"{tmp_path}/train.jsonl")
    task = resolve_task(OwnTask(name="colors", kind="question_answering"), source)
    with pytest.raises(
        ConfigError, match=r"train\.jsonl, line 1: answers is .*; allowed: texts, each with its answer_s"
    ):
        open_source(kind_of(task), source)


def test_features_to_train_on_are_not_those_to_evaluate(tmp_path: Path) -> None:
    """Only features for training leave out answers that are not at their stated position."""
    records = [
        {
            "id": str(place),
            "question": "b",
            "context": "The red one.",
            "answers": [{"text": "red", "answer_start": place}],
        }
        for place in (4, 5)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = FilesSource(kind="files", train=f"{tmp_path}/train.jsonl", dev=f"{tmp_path}/train.jsonl")
    raw = open_source(kind_of(resolve_task(OwnTask(name="colors", kind="question_answering"), source)), source)
    assert [table_of(raw, split).num_rows for split in ("train", "dev")] == [1, 2]
    assert raw.fingerprint("train") != raw.fingerprint("dev")
    lenient = OwnTask(name="colors", kind="question_answering", unanswerable=True)
    assert open_source(kind_of(resolve_task(lenient, source)), source).fingerprint("dev") != raw.fingerprint("dev")


def test_a_tokenizer_without_token_positions_is_refused() -> None:
    from transformers import ByT5Tokenizer

    (problem,) = kind_with(64).problems_with(ByT5Tokenizer(), "student.model")
    assert problem.startswith("student.model: ByT5Tokenizer does not give the positions of tokens in a text")


def test_the_hub_has_the_same_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {}
    text = datasets.Value("string")
    answers = datasets.Sequence({"text": text, "answer_start": datasets.Value("int32")})
    features = datasets.Features({name: text for name in ("id", "title", "context", "question")} | {"answers": answers})
    for split, numbers in (("train", range(9)), ("validation", range(9, 15))):
        given = [paragraph(number, "2.0") for number in numbers]
        questions = [p["qas"][0] for p in given]
        columns = {"id": [q["id"] for q in questions], "title": ["t"] * len(given)}
        columns |= {"context": [p["context"] for p in given], "question": [q["question"] for q in questions]}
        parts = ("text", "answer_start")
        columns["answers"] = [{part: [a[part] for a in q["answers"]] for part in parts} for q in questions]
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    copy = hub_copy(tmp_path, monkeypatch, {"squad_v2": splits})
    raw = open_source(kind_of(SQUAD_V2), HubSource(kind="hub", repository=str(copy)))
    files = official(write_squad(tmp_path / "files", "2.0", train=9, dev=6), "squad_v2")
    for split in ("train", "dev"):
        assert table_of(raw, split).equals(table_of(files, split))


def answer_start(record: dict[str, Any]) -> int:
    return int(record["answers"]["answer_start"][0])


def test_answers_that_are_not_at_their_stated_position_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_squad(tmp_path)
    for split in ("train", "dev"):
        file = folder / f"{split}-v1.1.json"
        content = json.loads(file.read_text())
        content["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["answer_start"] += 1
        file.write_text(json.dumps(content))
    raw = official(folder)
    with caplog.at_level(logging.WARNING, logger="raypp"):
        train, dev = table_of(raw, "train"), table_of(raw, "dev")
    assert train.num_rows == 47
    assert train.column("row").to_pylist() == list(range(47))
    assert "1.1-1" not in train.column("id").to_pylist()
    assert raw.skipped_rows["train"] == 1
    assert "train-v1.1.json: skipped 1 rows whose labels do not fit their texts" in caplog.text
    assert dev.num_rows == 24, "evaluation compares texts, so it keeps all"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q: q.pop("answers"), "paragraph 2, question '1.1-1': no answers; it has: id, question"),
        (lambda q: q.update(answers=[]), "answers is empty; allowed: at least one answer"),
        (lambda q: q.update(answers=[{"text": "red"}]), "allowed: texts, each with its answer_start in the context"),
        (lambda q: q.update(id=" "), "id is ' '; allowed: a text"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, change: Any, said: str) -> None:
    folder = write_squad(tmp_path)
    content = json.loads((folder / "train-v1.1.json").read_text())
    change(content["data"][0]["paragraphs"][1]["qas"][0])
    (folder / "train-v1.1.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        table_of(official(folder), "train")
    assert said in str(caught.value)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    folder = write_squad(tmp_path)
    (folder / "dev-v1.1.json").write_text('{"data": [{"title": "t"}]}')
    with pytest.raises(ConfigError, match=r"dev-v1\.1\.json is not SQuAD's JSON \(KeyError: 'paragraphs'\)"):
        official(folder)


@pytest.mark.parametrize(("max_length", "stride"), [(32, 8), (32, 16), (40, 1000), (512, 128)])
def test_windows_cover_the_context_and_know_the_answer(tokenizer: Any, max_length: int, stride: int) -> None:
    table = kind_with(max_length, stride).tokenize(long_examples(), tokenizer)
    examples = long_examples().to_pylist()
    rows = table.to_pylist()
    windows = [row for row in rows if row["row"] == 0]
    assert [row["window"] for row in windows] == list(range(len(windows)))
    assert (len(windows) > 2) == (max_length < 100)
    covered, with_answer = set(), 0
    for row in windows:
        assert len(row["input_ids"]) <= max_length
        kept = [i for i, start in enumerate(row["token_starts"]) if start >= 0]
        head = tokenizer("Which animal?")["input_ids"]
        assert row["input_ids"][: kept[0]] == head
        assert row["token_type_ids"] == [0] * len(head) + [1] * (len(row["input_ids"]) - len(head))
        assert row["input_ids"][kept[-1] + 1 :] == [tokenizer.sep_token_id]
        places = [(row["token_starts"][i], row["token_ends"][i]) for i in kept]
        covered |= set(places)
        if row["label"]:
            with_answer += 1
            text = examples[0]["context"][row["token_starts"][row["label"]] : row["token_ends"][row["label_end"]]]
            assert text == "zebra"
        else:
            assert (row["label"], row["label_end"]) == (0, 0)
    whole = tokenizer(examples[0]["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert covered == set(whole), "no token is left out"
    assert with_answer >= 1
    assert windows[0]["context"] == examples[0]["context"]
    assert all(row["context"] is None for row in windows[1:])
    assert [row["id"] for row in rows if row["row"] == 1] == ["short"]
    if (max_length, stride) == (32, 8):
        begins = [next(s for s in row["token_starts"] if s >= 0) for row in windows]
        assert [whole.index(next(p for p in whole if p[0] == b)) for b in begins] == [
            8 * i for i in range(len(windows))
        ]


def test_a_long_question_leaves_room_for_the_context(tokenizer: Any) -> None:
    table = long_examples().set_column(2, "question", pa.array(["why " * 200, "Which?"]))
    rows = kind_with(32, 8).tokenize(table, tokenizer).to_pylist()
    assert max(len(row["input_ids"]) for row in rows) == 32
    assert min(sum(start >= 0 for start in row["token_starts"]) for row in rows if row["row"] == 0) >= 8


def test_questions_without_labels_are_answered_too(tokenizer: Any, tmp_path: Path) -> None:
    table = long_examples().set_column(4, "label", pa.nulls(2, kind_with(64).label_type))
    features = Features.from_table(kind_with(32, 16).tokenize(table, tokenizer))
    assert not features.labelled.any()
    assert "labels" not in features.collate([0, 1], 0)
    predictions = Predictions(features, np.zeros((len(features.input_ids), 2), np.float32))
    files = kind_with(32, 16).write("test", predictions, tmp_path)
    assert [file.name for file in files] == ["predictions.json", "nbest_predictions.json"]
    assert json.loads(files[0].read_text()).keys() == {"long", "short"}


def test_the_best_spans_are_those_of_all_spans() -> None:
    random = np.random.default_rng(0)
    for trial in range(20):
        tokens = int(random.integers(3, 40))
        logits = random.normal(size=(tokens, 2)).astype(np.float32)
        begin, end = sorted(random.choice(tokens + 1, 2, replace=False))
        allowed = np.zeros(tokens, bool)
        allowed[begin:end] = True
        scores = {
            (first, last): float(logits[first, 0]) + float(logits[last, 1])
            for first, last in itertools.product(range(begin, end), repeat=2)
            if first <= last < first + 7
        }
        expected = sorted(scores.items(), key=lambda item: -item[1])[:5]
        found = best_spans(logits, allowed, 5, 7)
        assert [(first, last) for _, first, last in found] == [span for span, _ in expected], trial
        np.testing.assert_allclose([score for score, *_ in found], [score for _, score in expected], rtol=1e-6)
    assert best_spans(logits, np.zeros(tokens, bool), 5, 7) == []


def predictions_for(kind: QuestionAnswering, tokenizer: Any, peaks: dict[tuple[int, str], float], none: float) -> Any:
    """Predictions in which a word of one window of the long example has this logit, as start and as end; the first
    token of every window has `none`."""
    features = Features.from_table(kind.tokenize(long_examples(), tokenizer))
    assert features.reference is not None
    logits = np.full((len(features.input_ids), 2), -5.0, np.float32)
    logits[features.offsets[:-1]] = none
    context = features.reference.column("context").to_pylist()[0]
    for (window, word), value in peaks.items():
        start = context.index(word)
        tokens = features.reference.column("token_starts").to_pylist()[window]
        ends = features.reference.column("token_ends").to_pylist()[window]
        logits[features.offsets[window] + tokens.index(start), 0] = value
        logits[features.offsets[window] + ends.index(start + len(word)), 1] = value
    return Predictions(features, logits)


def test_the_best_window_answers_and_the_threshold_decides_whether_any_does(tokenizer: Any) -> None:
    peaks = {(0, "w3"): 1.0, (0, "zebra"): 2.0, (1, "w20"): 3.0}
    for threshold, none, text in ((0.0, 2.0, "w20"), (0.0, 3.5, ""), (1.5, 3.5, "w20")):
        kind = kind_with(32, 16, SQUAD_V2, null_threshold=threshold, max_tokens=4)
        answer = next(kind.answers(predictions_for(kind, tokenizer, peaks, none)))
        assert (answer.id, answer.text, answer.gold) == ("long", text, ("zebra",))
        assert [candidate.text for candidate in answer.candidates[:3]] == ["w20", "zebra", "w3"]
        assert answer.score == 6.0
        assert answer.no_answer_score == 2 * none
        assert answer.no_answer_probability == pytest.approx(1 / (1 + np.exp(6 - 2 * none)))
    kind = kind_with(32, 16)
    assert next(kind.answers(predictions_for(kind, tokenizer, peaks, 50.0))).text == "w20", (
        "there always is one in v1.1"
    )


def test_answers_are_whole_texts_of_the_context(tmp_path: Path, tokenizer: Any) -> None:
    """If the labels are the logits, every answer is the gold answer, for all windows and characters."""
    contexts = ["Naïve  Zoë\tpaid €5,000.50 (in cash) — twice.", "日本の首都は東京です。 It is 'Tokyo'!"]
    answers = ["€5,000.50 (in cash)", "'Tokyo'"]
    labels = [[{"text": text, "start": context.index(text)}] for context, text in zip(contexts, answers, strict=True)]
    columns = {"row": [0, 1], "id": ["a", "b"], "question": ["How much?", "Where?"], "context": contexts}
    kind = kind_with(24, 5)
    table = kind.tokenize(pa.table({**columns, "label": pa.array(labels, kind.label_type)}), tokenizer)
    features = Features.from_table(table)
    logits = np.zeros((len(features.input_ids), 2), np.float32)
    for side in (0, 1):
        logits[features.offsets[:-1] + features.labels[:, side], side] = 9.0
    predictions = Predictions(features, logits)
    assert [answer.text for answer in kind.answers(predictions)] == answers
    assert kind.metrics(predictions) == {"f1": 1.0, "exact_match": 1.0}


def test_losses_are_those_over_each_windows_own_tokens() -> None:
    torch.manual_seed(0)
    lengths, kind = [5, 8, 3], kind_with(64)
    logits, teacher = torch.randn(3, 8, 2), torch.randn(3, 8, 2)
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    labels = torch.tensor([[1, 2], [7, 7], [0, 0]])
    batch = {"attention_mask": mask.long(), "labels": labels, "teacher_logits": teacher}
    hard = soft = torch.zeros(())
    for row, length in enumerate(lengths):
        for side in (0, 1):
            own, other = logits[row, :length, side], teacher[row, :length, side]
            hard = hard - torch.log_softmax(own, 0)[labels[row, side]] / 2
            target = torch.softmax(other / 2, 0)
            soft = soft + 4 * (target * (target.log() - torch.log_softmax(own / 2, 0))).sum() / 2
    torch.testing.assert_close(kind.hard_loss_sum(logits, batch), hard)
    torch.testing.assert_close(kind.soft_loss_sum(logits, batch, 2.0), soft)
    logits.requires_grad_()
    (kind.hard_loss_sum(logits, batch) + kind.soft_loss_sum(logits, batch, 2.0)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[~mask].any(), "padding has no part in it"


def test_predictions_are_those_of_transformers_window_by_window(minilm_dir: Path, tokenizer: Any) -> None:
    kind = kind_with(32, 16)
    features = Features.from_table(kind.tokenize(long_examples(), tokenizer))
    model = load_pretrained(minilm_dir, kind_of(SQUAD), seed=3).eval()
    assert type(model).__name__ == "BertForQuestionAnswering"
    predictions = predict(model, features, kind, 0, Worker(), batch_size=2)
    assert predictions.logits.shape == (len(features.input_ids), 2)
    for window in range(len(features)):
        tokens = slice(features.offsets[window], features.offsets[window + 1])
        assert features.token_type_ids is not None
        given = {"input_ids": features.input_ids, "token_type_ids": features.token_type_ids}
        inputs = {name: torch.from_numpy(values[tokens].astype(np.int64))[None] for name, values in given.items()}
        output = model(**inputs)
        for side, logits in enumerate((output.start_logits, output.end_logits)):
            np.testing.assert_allclose(predictions.logits[tokens, side], logits[0].detach().numpy(), atol=1e-5)


def test_windows_are_part_of_the_key() -> None:
    keys = {kind_with(64, stride).features_key(raw_fingerprint="r", tokenizer_fingerprint="t") for stride in (32, 64)}
    assert len(keys) == 2


def experiment(folder: Path, encoder: Path, version: str = "2.0", **changes: Any) -> Path:
    settings = {
        "task": "squad_v2" if version == "2.0" else "squad",
        "data": {"source": {"kind": "official", "directory": str(folder / "SQuAD")}, "max_length": 32, "stride": 8},
        "student": {"model": str(encoder)},
        "teacher": {"train": {"max_steps": 3, "batch_size": 8}},
        "pruning": {"method": "topk", "final_density": 0.25, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 4, "batch_size": 8, "log_every_steps": 2},
        "run": "first",
        "cluster": {"workers": 0, "storage": str(folder / "runs")},
        "tracking": {"wandb": "off"},
    }
    file = folder / "squad.yaml"
    file.write_text(yaml.safe_dump(settings | changes))
    return file


def test_windows_of_other_kinds_are_refused(tmp_path: Path, minilm_dir: Path, capsys: Any) -> None:
    source = {"kind": "synthetic", "train_rows": 20, "dev_rows": 10}
    answers = {"answers": {"n_best": 3}}
    file = experiment(tmp_path, minilm_dir, task="sentiment", data={"source": source, "stride": 64}, evaluation=answers)
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert "data.stride: sentiment is a classification task, which does not use this setting; leave it out" in said
    assert "evaluation.answers: sentiment is" in said


def test_a_teacher_of_other_tokens_is_refused(
    tmp_path: Path, minilm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_squad(tmp_path / "SQuAD", "2.0", train=24, dev=12)
    cased = shutil.copytree(minilm_dir, tmp_path / "cased")
    load_pretrained(minilm_dir, kind_of(SQUAD), seed=3).save_pretrained(cased)
    settings = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    file = experiment(tmp_path, minilm_dir, teacher={"model": str(cased)})
    assert main(["show", str(file)]) == 2
    assert "cased has another tokenizer than the student" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_whole_run_and_the_commands_around_it(
    tmp_path: Path, minilm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_squad(tmp_path / "SQuAD", "2.0", train=24, dev=12)
    assert main(["train", str(experiment(tmp_path, minilm_dir))]) == 0
    run = tmp_path / "runs" / "squad" / "first"
    result = json.loads((run / "result.json").read_text())
    assert result["headline"] == "eval/f1"
    assert result["density"]["linear"] == pytest.approx(0.25, abs=1e-4)
    assert {"eval/f1", "eval/exact_match", "eval/no_answer_f1"} <= set(result["teacher_metrics"])

    capsys.readouterr()
    assert main(["evaluate", str(run), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text())
    chances = json.loads((tmp_path / "out" / "na_prob.json").read_text())
    best = json.loads((tmp_path / "out" / "nbest_predictions.json").read_text())
    given = [paragraph(number, "2.0") for number in range(24, 36)]
    gold = {p["qas"][0]["id"]: [answer["text"] for answer in p["qas"][0]["answers"]] for p in given}
    assert answers.keys() == chances.keys() == best.keys() == gold.keys()
    metrics = answer_metrics([answers[name] for name in gold], list(gold.values()), True)
    for name, value in metrics.items():
        assert result["metrics"][f"eval/{name}"] == pytest.approx(value)
        assert f"{name} {value:.4f}" in printed
    for name, answer in answers.items():
        assert (answer == "") == (chances[name] > 0.5)
        assert answer in ("", best[name][0]["text"])
        assert sum(candidate["probability"] for candidate in best[name]) == pytest.approx(1)
    lines = [line.split("\t") for line in (run / "predictions.tsv").read_text().splitlines()]
    assert lines[0] == ["split", "row", "id", "label", "prediction", "score", "no_answer_score"]
    assert {line[2]: line[4] for line in lines[1:]} == answers

    assert main(["inspect", str(run)]) == 0
    assert "BertForQuestionAnswering" in capsys.readouterr().out
    assert main(["export", str(run), "--to", str(tmp_path / "exported")]) == 0
    assert "a model for AutoModelForQuestionAnswering.from_pretrained" in capsys.readouterr().out
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "exported")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_small_encoder_learns_to_answer(tmp_path: Path, minilm_dir: Path) -> None:
    write_squad(tmp_path / "SQuAD", "1.1", train=480, dev=60)
    source = {"kind": "official", "directory": str(tmp_path / "SQuAD")}
    changes = {"teacher": None, "train": {"epochs": 6, "batch_size": 16, "learning_rate": 2e-4}}
    changes |= {"data": {"source": source, "max_length": 64, "stride": 32}}
    changes["pruning"] = {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1}
    assert main(["train", str(experiment(tmp_path, minilm_dir, "1.1", **changes))]) == 0
    result = json.loads((tmp_path / "runs" / "squad" / "first" / "result.json").read_text())
    assert result["metrics"]["eval/exact_match"] > 0.6, (
        "a guess among the three colours of a context is right in a third"
    )
