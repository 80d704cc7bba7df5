"""Every source: the official files exactly, the user's own files, the hub's copy; and what is said of bad ones."""

from __future__ import annotations

import csv
import json
import logging
import pickle
import secrets
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_copy import hub_copy

from raypp.config import Columns, FilesSource, HubSource, OfficialSource, OwnTask, SyntheticSource
from raypp.data.sources import BATCH_ROWS, RawData, open_source
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.tasks import TASKS, Task, resolve_task

SENTIMENT = OwnTask(name="reviews", labels=("bad", "good"))
PAIRS = OwnTask(name="pairs", kind="regression", pair=True)


def official(directory: Path, name: str, **options: Any) -> RawData:
    return open_source(kind_of(TASKS[name]), OfficialSource(kind="official", directory=str(directory)), **options)


def rows(raw: RawData, split: str) -> list[dict[str, Any]]:
    """All rows without their numbers, which are checked here."""
    table = pa.Table.from_batches(list(raw.read(split)), raw.kind.schema())
    assert table["row"].to_pylist() == list(range(table.num_rows))
    return table.drop_columns("row").to_pylist()


def write(folder: Path, **files: str) -> Path:
    """Writes files by stem; `train="…"` becomes train.tsv."""
    folder.mkdir(exist_ok=True)
    for stem, text in files.items():
        (folder / f"{stem}.tsv").write_bytes(text.encode())
    return folder


def table(*lines: str) -> str:
    """Lines whose fields stand apart by `|`, as a tab-separated file."""
    return "".join(line.replace("|", "\t") + "\n" for line in lines)


# --- the official files, real ones ------------------------------------------------------------------------------------

# Task, folder, split, rows as published (None: this differs between copies), positions of the sentences, of the label.
REAL = [
    ("cola", "CoLA", "train", 8551, (3,), 1),
    ("cola", "CoLA", "dev", 1043, (3,), 1),
    ("cola", "CoLA", "test", 1063, (1,), None),
    ("sst2", "SST-2", "train", 67349, (0,), 1),
    ("sst2", "SST-2", "dev", 872, (0,), 1),
    ("sst2", "SST-2", "test", 1821, (1,), None),
    ("mrpc", "MRPC", "train", None, (3, 4), 0),
    ("mrpc", "MRPC", "dev", 408, (3, 4), 0),
    ("mrpc", "MRPC", "test", 1725, (3, 4), None),
    ("stsb", "STS-B", "train", 5749, (7, 8), 9),
    ("stsb", "STS-B", "dev", 1500, (7, 8), 9),
    ("stsb", "STS-B", "test", 1379, (7, 8), None),
]


@pytest.mark.parametrize(("name", "folder", "split", "count", "sentences", "label"), REAL)
def test_real_files_are_read_exactly(
    glue_dir: Path, name: str, folder: str, split: str, count: int | None, sentences: tuple[int, ...], label: int | None
) -> None:
    task = TASKS[name]
    lines = (glue_dir / folder / f"{split}.tsv").read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    if name != "cola" or split == "test":
        lines = lines[1:]
    cells = [line.split("\t") for line in lines]
    number = float if task.kind == "regression" else int
    expected = {f"sentence{i + 1}": [row[column] for row in cells] for i, column in enumerate(sentences)}
    raw = official(glue_dir / folder, name)
    read = pa.Table.from_batches(list(raw.read(split)))
    assert count in (None, read.num_rows)
    for column, values in expected.items():
        assert read[column].to_pylist() == values
    labels = read["label"].to_pylist()
    if label is None:
        assert labels == [None] * len(cells)
    else:
        assert labels == [np.float32(number(row[label])) if number is float else int(row[label]) for row in cells]
    assert raw.skipped_rows == {split: 0}


def test_known_rows_of_the_real_files(glue_dir: Path) -> None:
    cola = rows(official(glue_dir / "CoLA", "cola"), "train")
    assert cola[0] == {
        "sentence1": "Our friends won't buy this analysis, let alone the next one we propose.",
        "label": 1,
    }
    mrpc = rows(official(glue_dir / "MRPC", "mrpc"), "dev")
    assert mrpc[0]["sentence2"].startswith('" The foodservice pie business')
    assert sum(row["label"] for row in mrpc) == 279
    stsb = rows(official(glue_dir / "STS-B", "stsb"), "train")
    assert (stsb[0]["sentence1"], stsb[0]["label"]) == ("A plane is taking off.", 5.0)


# --- the official layout of the tasks whose files are not at hand -----------------------------------------------------

PARSES = "sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
MNLI_HEAD = f"index|promptID|pairID|genre|{PARSES}|sentence1|sentence2"
MNLI_ROW = "{i}|31193|31193n|government|( a )|( b )|(ROOT a)|(ROOT b)|Premise {i}.|Hypothesis {i}."
QQP_HEAD = "id|qid1|qid2|question1|question2|is_duplicate"


def test_mnli_columns_move_between_splits(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        train=table(
            f"{MNLI_HEAD}|label1|gold_label",
            f"{MNLI_ROW.format(i=0)}|neutral|neutral",
            f"{MNLI_ROW.format(i=1)}|entailment|entailment",
        ),
        dev_matched=table(
            f"{MNLI_HEAD}|label1|label2|label3|label4|label5|gold_label",
            f"{MNLI_ROW.format(i=2)}|neutral|neutral|entailment|contradiction|contradiction|contradiction",
        ),
        dev_mismatched=table(
            f"{MNLI_HEAD}|label1|label2|label3|label4|label5|gold_label",
            f"{MNLI_ROW.format(i=3)}|neutral|neutral|entailment|entailment|entailment|entailment",
        ),
        test_matched=table(MNLI_HEAD, MNLI_ROW.format(i=4)),
        test_mismatched=table(MNLI_HEAD, MNLI_ROW.format(i=5)),
    )
    raw = official(folder, "mnli")
    assert raw.splits == TASKS["mnli"].splits
    read = {split: rows(raw, split) for split in raw.splits}
    assert [row["label"] for row in read["train"]] == [1, 0]
    assert read["dev_matched"] == [{"sentence1": "Premise 2.", "sentence2": "Hypothesis 2.", "label": 2}]
    assert read["dev_mismatched"][0]["label"] == 0
    assert read["test_matched"] == [{"sentence1": "Premise 4.", "sentence2": "Hypothesis 4.", "label": None}]
    assert read["test_mismatched"][0]["sentence2"] == "Hypothesis 5."


def test_qqp_rows_that_lack_fields_are_skipped_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(
        tmp_path,
        train=table(
            QQP_HEAD,
            "133273|213221|213222|How is the life of a math student?|Which level is enough?|0",
            '402555|536040|536041|"Was he a real figure?',  # a question with a line break: two cut rows
            '"|Was Muhammad a real historical figure?|0',
            "",
            "360472|364011|490273|How can I develop android app?||0",  # an empty question is data
            "150662|155721|7256|What can one do?|What should one do?|1",
            "183004|279958|279959|A|B|",
        ),
        dev=table(QQP_HEAD, "1|2|3|What?|Why?|1"),
        test=table("id|question1|question2", "0|Would the idea work?|Will it?"),
    )
    raw = official(folder, "qqp")
    with caplog.at_level(logging.WARNING, logger="raypp"):
        read = rows(raw, "train")
        assert rows(raw, "train") == read
        rows(raw, "dev")
    assert [row["label"] for row in read] == [0, 0, 1]
    assert read[1] == {"sentence1": "How can I develop android app?", "sentence2": "", "label": 0}
    assert raw.skipped_rows == {"train": 4, "dev": 0}
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}/train.tsv: skipped 4 rows with too few fields, as GLUE's own readers do"
    ]
    assert rows(raw, "test") == [{"sentence1": "Would the idea work?", "sentence2": "Will it?", "label": None}]


def test_a_cut_row_of_qqp_test_is_an_error_because_the_submission_needs_it(tmp_path: Path) -> None:
    folder = write(tmp_path, test=table("id|question1|question2", "0|What?|Why?", "1|Who?"))
    raw = official(folder, "qqp", required=("test",))
    with pytest.raises(ConfigError, match=r"test\.tsv, line 3: 2 fields, got '1\\tWho\?'; allowed: 3"):
        rows(raw, "test")


@pytest.mark.parametrize(
    ("name", "train", "test", "expected"),
    [
        (
            "qnli",
            ("index|question|sentence|label", "0|When?|Then.|entailment", "1|Who?|It was.|not_entailment"),
            ("index|question|sentence", "0|What?|That."),
            [("When?", "Then.", 0), ("Who?", "It was.", 1)],
        ),
        (
            "rte",
            ("index|sentence1|sentence2|label", "0|No weapons.|Weapons.|not_entailment", "1|A.|B.|entailment"),
            ("index|sentence1|sentence2", "0|What?|That."),
            [("No weapons.", "Weapons.", 1), ("A.", "B.", 0)],
        ),
        (
            "wnli",
            ("index|sentence1|sentence2|label", "0|I stuck a pin.|The carrot had a hole.|1", "1|A.|B.|0"),
            ("index|sentence1|sentence2", "0|What?|That."),
            [("I stuck a pin.", "The carrot had a hole.", 1), ("A.", "B.", 0)],
        ),
    ],
)
def test_tasks_of_three_files(
    tmp_path: Path, name: str, train: tuple[str, ...], test: tuple[str, ...], expected: list[tuple[str, str, int]]
) -> None:
    raw = official(write(tmp_path, train=table(*train), dev=table(*train), test=table(*test)), name)
    for split in ("train", "dev"):
        assert [tuple(row.values()) for row in rows(raw, split)] == expected
    assert [tuple(row.values()) for row in rows(raw, "test")] == [("What?", "That.", None)]


@pytest.mark.parametrize("name", ["diagnostic", "AX"])
def test_ax_is_a_test_file_alone_by_either_of_its_published_names(tmp_path: Path, name: str) -> None:
    raw = official(write(tmp_path, **{name: table("index|sentence1|sentence2", "0|A cat sat.|It did not.")}), "ax")
    assert raw.splits == ("test",)
    assert rows(raw, "test") == [{"sentence1": "A cat sat.", "sentence2": "It did not.", "label": None}]
    assert raw.describe("test").endswith(f"{name}.tsv")


def test_a_submission_beside_the_diagnostic_set_is_not_taken_for_it(tmp_path: Path) -> None:
    """It is called as the other of the set's published names is."""
    files = {"diagnostic": table("index|sentence1|sentence2", "0|A.|B."), "AX": table("index|prediction", "0|neutral")}
    assert len(rows(official(write(tmp_path, **files), "ax"), "test")) == 1


def test_a_folder_without_the_diagnostic_set_is_told_both_its_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks diagnostic\.tsv \(or AX\.tsv\) of AX; it holds: train\.tsv"):
        official(write(tmp_path, train=table("index|sentence1|sentence2")), "ax", required=("test",))


def test_odd_characters_stay_and_only_newlines_end_lines(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x0bd\x0ce\x1cf\u00a0 g "
    text = f'sentence\tlabel\r\n{odd}\t1\r\n" He said "no\t0\r\n\ufeffmark\t1\n\n'
    raw = official(write(tmp_path, train="\ufeff" + text, dev=text), "sst2")
    for split in ("train", "dev"):
        assert [row["sentence1"] for row in rows(raw, split)] == [odd, '" He said "no', "\ufeffmark"]
        assert [row["label"] for row in rows(raw, split)] == [1, 0, 1]


def test_lines_longer_and_shorter_than_what_is_read_at_once(tmp_path: Path) -> None:
    sentences = ["x" * 3_000_000, "é" * 700_001, "short", "y" * 1_048_576]
    text = "sentence\tlabel\n" + "".join(f"{sentence}\t1\n" for sentence in sentences).removesuffix("\n")
    raw = official(write(tmp_path, train=text, dev=text), "sst2")
    assert [row["sentence1"] for row in rows(raw, "train")] == sentences


def test_surplus_fields_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = table("index|sentence1|sentence2|label", "0|A.|B.|entailment|more", "1|C.|D.|entailment")
    raw = official(write(tmp_path, train=text, dev=text), "rte")
    with caplog.at_level(logging.WARNING, logger="raypp"):
        assert [row["sentence1"] for row in rows(raw, "train")] == ["A.", "C."]
    assert "1 rows have more fields than the header" in caplog.text


BAD_OFFICIAL = [
    ("sst2", "a|1\nb|2", "line 3: label is '2'; allowed: 0, 1"),
    ("sst2", "a|positive", "line 2: label is 'positive'; allowed: 0, 1"),
    ("sst2", "a|", "line 2: the label is empty, got 'a\\t'; allowed: 0, 1"),
    ("sst2", "a|1\nb", "line 3: 1 fields, got 'b'; allowed: 2 separated by tabs"),
    ("sst2", "a|1\n\nb|1", "line 3: 1 fields, got ''"),
    ("sst2", "  |1", "line 2: sentence1: no text, got ['  ']; allowed: a sentence"),
    ("stsb", "a|b|many", "line 2: label is 'many'; allowed: a number from 0 to 5"),
    ("stsb", "a|b|nan", "line 2: label is 'nan'; allowed: a number from 0 to 5"),
    ("stsb", "a|b|5.5", "line 2: label is '5.5'; allowed: a number from 0 to 5"),
    ("stsb", "||1.0", "line 2: sentence1 and sentence2: no text"),
    ("rte", "a|b|neutral", "line 2: label is 'neutral'; allowed: entailment, not_entailment"),
    ("rte", "a|b|0", "line 2: label is '0'; allowed: entailment, not_entailment"),
]
HEADS = {"sst2": "sentence|label", "stsb": "sentence1|sentence2|score", "rte": "sentence1|sentence2|label"}


@pytest.mark.parametrize(("name", "body", "said"), BAD_OFFICIAL)
def test_a_bad_official_row_names_file_and_line(tmp_path: Path, name: str, body: str, said: str) -> None:
    good = {"sst2": "fine|1", "stsb": "a|b|5.000", "rte": "a|b|entailment"}[name]
    folder = write(tmp_path, train=table(HEADS[name], body), dev=table(HEADS[name], good))
    with pytest.raises(ConfigError) as error:
        rows(official(folder, name, required=("dev",)), "train")
    assert str(error.value).startswith(f"{folder}/train.tsv, {said}")


def test_bytes_that_are_no_utf8_name_file_line_and_byte(tmp_path: Path) -> None:
    write(tmp_path, dev=table("sentence|label", "a|1"))
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t0\n")
    with pytest.raises(ConfigError) as error:
        rows(official(tmp_path, "sst2"), "train")
    assert str(error.value).startswith(f"{tmp_path}/train.tsv, line 3: byte 0xe9 at position 4 is not UTF-8")


def test_all_that_is_wrong_at_opening_is_said_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path, train=table("text|label", "a|1"), dev=table("sentence|label"))
    with pytest.raises(ConfigError) as error:
        official(folder, "sst2")
    assert error.value.problems == (
        f"{folder}/train.tsv, line 1: no column 'sentence'; the header has: ['text', 'label']",
        f"data.source: {folder}/dev.tsv holds no rows; at least one is needed",
    )


def test_missing_folder_and_files_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.directory: '/nowhere/MRPC' is not a folder"):
        official(Path("/nowhere/MRPC"), "mrpc")
    folder = write(tmp_path, train=table("sentence|label", "a|1"))
    with pytest.raises(ConfigError) as error:
        official(folder, "sst2")
    assert str(error.value) == f"data.source.directory: {folder} lacks dev.tsv of SST-2; it holds: train.tsv"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"lacks train\.tsv, dev\.tsv of SST-2; it holds: nothing"):
        official(empty, "sst2")
    raw = official(folder, "sst2", required=("train",))
    with pytest.raises(ConfigError, match=r"sst2 has no split 'test' here; it has: \['train'\]"):
        raw.read("test")


def test_a_folder_may_be_a_uri(tmp_path: Path) -> None:
    text = table("sentence|label", "a|1")
    write(tmp_path, train=text, dev=text)
    raw = open_source(kind_of(TASKS["sst2"]), OfficialSource(kind="official", directory=tmp_path.as_uri()))
    assert rows(raw, "dev") == [{"sentence1": "a", "label": 1}]


# --- batches and fingerprints -----------------------------------------------------------------------------------------


def test_batches_are_bounded_and_train_is_cut(tmp_path: Path) -> None:
    text = "sentence\tlabel\n" + "".join(f"sentence {i}\t{i % 2}\n" for i in range(2 * BATCH_ROWS + 5))
    folder = write(tmp_path, train=text, dev=text)
    batches = list(official(folder, "sst2").read("train"))
    assert [batch.num_rows for batch in batches] == [BATCH_ROWS, BATCH_ROWS, 5]
    assert {batch.schema for batch in batches} == {kind_of(TASKS["sst2"]).schema()}
    assert batches[2].to_pylist()[0] == {"row": 2 * BATCH_ROWS, "sentence1": f"sentence {2 * BATCH_ROWS}", "label": 0}
    cut = official(folder, "sst2", max_train_rows=7)
    assert rows(cut, "train") == rows(official(folder, "sst2"), "train")[:7]
    assert len(rows(cut, "dev")) == 2 * BATCH_ROWS + 5


def test_fingerprint_follows_what_determines_the_rows(tmp_path: Path) -> None:
    text = table("sentence|label", "a|1", "b|0")
    here = official(write(tmp_path / "here", train=text, dev=text), "sst2")
    there = official(write(tmp_path / "there", train=text, dev=text + "c\t1\n"), "sst2")
    assert here.fingerprint("train") == there.fingerprint("train")
    assert here.fingerprint("train") == pickle.loads(pickle.dumps(here)).fingerprint("train")
    assert here.fingerprint("dev") != there.fingerprint("dev")
    cut = official(tmp_path / "here", "sst2", max_train_rows=1)
    assert cut.fingerprint("train") != here.fingerprint("train")
    assert cut.fingerprint("dev") == here.fingerprint("dev")
    own = {"train": str(tmp_path / "here" / "train.tsv"), "dev": str(tmp_path / "here" / "dev.tsv")}
    prints = set()
    for labels in (("bad", "good"), ("good", "bad")):
        for label in ("label", "sentence"):
            source = FilesSource(kind="files", **own, columns=Columns(sentence1="sentence", label=label))
            task = resolve_task(OwnTask(name="mine", labels=labels), source)
            prints.add(open_source(kind_of(task), source, required=()).fingerprint("train"))
    assert len(prints) == 4


# --- the user's own files ---------------------------------------------------------------------------------------------

REVIEWS = [
    {"text": 'He said "no", twice', "stars": "good"},
    {"text": "two\nlines\tand a tab", "stars": "bad"},
    {"text": " 漢字 ", "stars": "good"},
]


def save(file: Path, records: list[dict[str, Any]]) -> str:
    """Writes the records in the format that the name ends in."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]), delimiter="," if file.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    return str(file)


def own(task: OwnTask | str, train: str, dev: str | None = None, **options: Any) -> RawData:
    columns = Columns(**options.pop("columns", {}))
    source = FilesSource(kind="files", train=train, dev=dev or train, columns=columns, **options)
    return open_source(kind_of(resolve_task(task, source)), source)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "CSV"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"reviews.{ending.lower()}"
    save(file, REVIEWS)
    file = file.rename(tmp_path / f"reviews.{ending}")
    raw = own(SENTIMENT, str(file), columns={"sentence1": "text", "label": "stars"})
    expected = [
        {"sentence1": 'He said "no", twice', "label": 1},
        {"sentence1": "two\nlines\tand a tab", "label": 0},
        {"sentence1": " 漢字 ", "label": 1},
    ]
    assert rows(raw, "train") == rows(raw, "dev") == expected
    assert raw.splits == ("train", "dev")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["good", "bad"], [1, 0]),
        ([1, 0], [1, 0]),
        (["1", "0"], [1, 0]),
        ([1.0, 0.0], [1, 0]),
        ([True, False], [1, 0]),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_labels_by_name_or_number(tmp_path: Path, ending: str, values: list[Any], expected: list[int]) -> None:
    records = [{"sentence1": "x", "label": value} for value in values]
    raw = own(SENTIMENT, save(tmp_path / f"train.{ending}", records))
    assert [row["label"] for row in rows(raw, "train")] == expected


@pytest.mark.parametrize("names", [("true", "false"), ("False", "True"), ("yes", "no"), ("No", "maybe", "Yes")])
def test_booleans_are_the_names_that_say_so(tmp_path: Path, names: tuple[str, ...]) -> None:
    values = [True, False, True]
    task = OwnTask(name="claims", labels=names)
    raw = own(task, save(tmp_path / "train.jsonl", [{"sentence1": "x", "label": value} for value in values]))
    said = [names[row["label"]].lower() for row in rows(raw, "train")]
    assert said in (["true", "false", "true"], ["yes", "no", "yes"])


def test_a_missing_label_is_no_class_called_none(tmp_path: Path) -> None:
    task = OwnTask(name="severity", labels=("None", "Mild"))
    records = [{"sentence1": "x", "label": "None"}, {"sentence1": "y", "label": None}]
    with pytest.raises(ConfigError, match="line 2: label is None; allowed: 0, 1, None, Mild"):
        rows(own(task, save(tmp_path / "train.jsonl", records)), "train")


QUOTED = 'sentence1\tlabel\n"I came.\t1\nI saw."\t0\n"Whole."\t1\n'


def test_quotes_are_characters_like_others_where_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.tsv").write_text(QUOTED)
    plain = own(SENTIMENT, f"{tmp_path}/train.tsv", quotes="plain")
    assert rows(plain, "train") == [
        {"sentence1": '"I came.', "label": 1},
        {"sentence1": 'I saw."', "label": 0},
        {"sentence1": '"Whole."', "label": 1},
    ]
    assert "tabs or line ends" not in caplog.text
    quoting = own(SENTIMENT, f"{tmp_path}/train.tsv")
    with caplog.at_level(logging.WARNING, logger="raypp"):
        assert rows(quoting, "train")[0] == {"sentence1": "I came.\t1\nI saw.", "label": 0}
    assert "train.tsv: 1 fields in double quotes hold tabs or line ends (the first ends in line 3)" in caplog.text
    assert plain.fingerprint("train") != quoting.fingerprint("train")


def test_a_text_may_be_long(tmp_path: Path) -> None:
    records = [{"sentence1": "a" * 200_000, "label": 1}]
    assert rows(own(SENTIMENT, save(tmp_path / "train.csv", records)), "train") == records


def test_batches_of_long_texts_have_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypp.data.raw.BATCH_CHARACTERS", 100)
    lengths = [10, 95, 30, 30, 30, 30, 1]
    raw = own(SENTIMENT, save(tmp_path / "train.jsonl", [{"sentence1": "a" * n, "label": 1} for n in lengths]))
    batches = list(raw.read("train"))
    assert [batch.num_rows for batch in batches] == [2, 4, 1]
    assert [row for batch in batches for row in batch.column("row").to_pylist()] == list(range(7))


def test_columns_that_nobody_wants_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        for batch in real(self, *args, **options):
            read.extend(batch.schema.names)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    records = [{"sentence1": "x", "label": 1, "embedding": [0.0] * 8}]
    assert len(rows(own(SENTIMENT, save(tmp_path / "train.parquet", records)), "train")) == 1
    assert set(read) == {"sentence1", "label"}


def test_label_names_that_are_numbers_are_names(tmp_path: Path) -> None:
    task = OwnTask(name="stars", labels=("1", "2", "3"))
    records = [{"sentence1": "x", "label": value} for value in (3, 1, 2)]
    assert [row["label"] for row in rows(own(task, save(tmp_path / "a.parquet", records)), "train")] == [2, 0, 1]
    with pytest.raises(ConfigError, match="label is '0'; allowed: 1, 2, 3"):
        own(task, save(tmp_path / "b.csv", [{"sentence1": "x", "label": 0}]))


def test_pairs_and_regression(tmp_path: Path) -> None:
    records = [{"sentence1": "a", "sentence2": "b", "label": -2.5}, {"sentence1": "c", "sentence2": "d", "label": 7}]
    for ending in ("csv", "parquet", "jsonl"):
        raw = own(PAIRS, save(tmp_path / f"train.{ending}", records))
        assert [tuple(row.values()) for row in rows(raw, "dev")] == [("a", "b", -2.5), ("c", "d", 7.0)]


def test_a_task_of_the_table_from_own_files(tmp_path: Path) -> None:
    records = [{"sentence1": "a", "sentence2": "b", "label": "equivalent"}]
    raw = own("mrpc", save(tmp_path / "mrpc.parquet", records))
    assert rows(raw, "dev") == [{"sentence1": "a", "sentence2": "b", "label": 1}]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_test_file_needs_no_labels(tmp_path: Path, ending: str) -> None:
    train = save(tmp_path / "train.csv", [{"sentence1": "x", "label": 1}])
    without = save(tmp_path / f"without.{ending}", [{"sentence1": "y"}])
    some = save(tmp_path / f"some.{ending}", [{"sentence1": "y", "label": "good"}, {"sentence1": "z", "label": None}])
    assert rows(own(SENTIMENT, train, test=without), "test") == [{"sentence1": "y", "label": None}]
    assert [row["label"] for row in rows(own(SENTIMENT, train, test=some), "test")] == [1, None]


BAD_FILES: list[tuple[OwnTask, str, str, str]] = [
    (
        SENTIMENT,
        "csv",
        "text,label\nx,1\n",
        "line 2: no column 'sentence1' (data.source.columns); there are: text, label",
    ),
    (SENTIMENT, "csv", "sentence1,label\nx,1\ny,fine\n", "line 3: label is 'fine'; allowed: 0, 1, bad, good"),
    (SENTIMENT, "csv", "sentence1,label\nx,1\ny,\n", "line 3: label is ''; allowed"),
    (SENTIMENT, "csv", "sentence1,label\nx,1\ny\n", "line 3: 1 fields, got ['y']; allowed: 2, as in the header"),
    (SENTIMENT, "csv", "sentence1,label\nx, and,1\n", "line 2: 3 fields"),
    (SENTIMENT, "csv", "sentence1,label\nx,1\n\ny,1\n", "line 3: 0 fields"),
    (
        SENTIMENT,
        "csv",
        'sentence1,label\n"x" y,1\n',
        "line 2: ',' expected after '\"'; allowed: fields separated by ','",
    ),
    (SENTIMENT, "csv", 'sentence1,label\nx,1\n"y,1\n', "line 3: unexpected end of data"),
    (SENTIMENT, "csv", 'sentence1,label\n"x,1\ny,1\nz,1\n', "line 2 (read to line 4): unexpected end of data"),
    (SENTIMENT, "csv", "sentence1,label,label\nx,1,0\n", "line 1: the header repeats 'label'"),
    (SENTIMENT, "tsv", "sentence1,label\nx,1\n", "line 2: no column 'sentence1'"),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": 1}\n{"sentence1": "y"}\n', "line 2: no column 'label'"),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": 1}\n{"sentence1": \n', "line 2: Expecting value at position"),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": 1}\n["y", 1]\n', 'line 2: ["y", 1]; allowed: one JSON object'),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": 1}\n\n{"sentence1": "y", "label": 1}', "line 2: Expecting value"),
    (SENTIMENT, "jsonl", '{"sentence1": 5, "label": 1}\n', "line 1: sentence1 is 5; allowed: text"),
    (
        SENTIMENT,
        "jsonl",
        '{"sentence1": "ab\\ud83d", "label": 1}\n',
        "line 1: sentence1 has '\\ud83d' at position 3, half a character; allowed: whole characters",
    ),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": NaN}\n', "line 1: label is nan; allowed"),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": 0.5}\n', "line 1: label is 0.5; allowed"),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": 2}\n', "line 1: label is 2; allowed"),
    (SENTIMENT, "jsonl", '{"sentence1": "x", "label": null}\n', "line 1: label is None; allowed"),
    (PAIRS, "csv", "sentence1,sentence2,label\na,b,inf\n", "line 2: label is 'inf'; allowed: a finite number"),
    (PAIRS, "csv", "sentence1,sentence2,label\na,b,1e39\n", "line 2: label is '1e39'; allowed: a finite number"),
    (PAIRS, "csv", "sentence1,sentence2,label\na,b,much\n", "line 2: label is 'much'; allowed: a finite number"),
    (PAIRS, "jsonl", '{"sentence1": "a", "label": 1}\n', "line 1: no column 'sentence2'"),
]


@pytest.mark.parametrize(("task", "ending", "text", "said"), BAD_FILES)
def test_a_bad_row_of_an_own_file_names_file_and_line(
    tmp_path: Path, task: OwnTask, ending: str, text: str, said: str
) -> None:
    file = tmp_path / f"train.{ending}"
    file.write_text(text)
    source = FilesSource(kind="files", train=str(file), dev=str(file))
    raw = open_source(kind_of(resolve_task(task, source)), source, required=())
    with pytest.raises(ConfigError) as error:
        rows(raw, "train")
    assert str(error.value).startswith(f"{file}, {said}")


def test_bad_parquet_names_file_and_row(tmp_path: Path) -> None:
    records = [{"sentence1": "x", "label": 1}, {"sentence1": None, "label": 0}]
    raw = own(SENTIMENT, file := save(tmp_path / "train.parquet", records))
    with pytest.raises(ConfigError) as error:
        rows(raw, "train")
    assert str(error.value) == f"{file}, row 2: sentence1 is None; allowed: text"
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"torn\.parquet cannot be read as Parquet"):
        own(SENTIMENT, str(tmp_path / "torn.parquet"))


def test_reading_parquet_takes_the_memory_of_a_part_and_not_of_the_file(tmp_path: Path) -> None:
    file, texts = tmp_path / "train.parquet", [secrets.token_hex(500) for _ in range(1000)]
    schema = pa.schema([("sentence1", pa.string()), ("label", pa.int64())])
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for _ in range(40):  # row groups of a mebibyte
            writer.write_table(pa.table({"sentence1": texts, "label": [0] * 1000}, schema))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in own(SENTIMENT, str(file)).read("train")]
    assert len(held) == 4
    assert max(held) < 30 * 2**20 < file.stat().st_size


def test_all_wrong_paths_are_said_at_once(tmp_path: Path) -> None:
    good = save(tmp_path / "train.csv", [{"sentence1": "x", "label": 1}])
    with pytest.raises(ConfigError) as error:
        own(SENTIMENT, good, dev=f"{tmp_path}/dev.xlsx", test=f"{tmp_path}/gone.csv", columns={"sentence2": "other"})
    assert [problem.split(": ")[0] for problem in error.value.problems] == [
        "data.source.dev",
        "data.source.test",
        "data.source.columns.sentence2",
    ]
    (tmp_path / "empty.csv").write_text("sentence1,label\n")
    with pytest.raises(ConfigError, match="holds no rows"):
        own(SENTIMENT, str(tmp_path / "empty.csv"))


def test_a_source_as_a_run_records_it_opens_as_the_one_that_was_given(tmp_path: Path) -> None:
    file = save(tmp_path / "train.csv", [{"text": "x", "label": 1}])
    given = FilesSource(kind="files", train=file, dev=file, columns=Columns(sentence1="text"))
    recorded = FilesSource.model_validate(given.model_dump(mode="json"))
    first, again = (open_source(kind_of(resolve_task(SENTIMENT, source)), source) for source in (given, recorded))
    assert rows(again, "dev") == rows(first, "dev") == [{"sentence1": "x", "label": 1}]
    assert again.fingerprint("train") == first.fingerprint("train")


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def glue_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's repository of GLUE, with four configurations."""
    text = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")}
    data = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    features = {
        "mrpc": datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
        "stsb": datasets.Value("float32"),
        # The order of the names differs from the task's.
        "rte": datasets.ClassLabel(names=["not_entailment", "entailment"]),
        "wnli": datasets.ClassLabel(names=["no", "yes"]),
    }
    labels = {"train": [1, 0], "validation": [0, 1], "test": [-1, -1]}
    configurations = {
        name: {
            split: datasets.Dataset.from_dict(
                {**data, "label": values}, features=datasets.Features({**text, "label": feature})
            )
            for split, values in labels.items()
        }
        for name, feature in features.items()
    }
    return hub_copy(tmp_path, monkeypatch, configurations)


def from_hub(repository: Path | str, task: Task) -> RawData:
    return open_source(kind_of(task), HubSource(kind="hub", repository=str(repository)))


def test_hub_splits_and_labels(glue_copy: Path) -> None:
    raw = from_hub(glue_copy, TASKS["mrpc"])
    assert raw.splits == ("train", "dev", "test")
    assert rows(raw, "train") == [
        {"sentence1": "a", "sentence2": "c", "label": 1},
        {"sentence1": "b", "sentence2": "d", "label": 0},
    ]
    assert [row["label"] for row in rows(raw, "dev")] == [0, 1]
    assert [row["label"] for row in rows(raw, "test")] == [None, None]
    assert [row["label"] for row in rows(from_hub(glue_copy, TASKS["stsb"]), "train")] == [1.0, 0.0]
    assert [row["label"] for row in rows(from_hub(glue_copy, TASKS["rte"]), "train")] == [0, 1]
    assert raw.fingerprint("train") == from_hub(glue_copy, TASKS["mrpc"]).fingerprint("train")
    assert raw.fingerprint("train") != raw.fingerprint("dev")


def test_hub_refusals_say_why_and_what_to_do(glue_copy: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the labels of wnli are \['not_entailment', 'entailment'\], got \['no', 'ye"
    ):
        from_hub(glue_copy, TASKS["wnli"])
    with pytest.raises(ConfigError, match=r"data\.source\.repository: .* \(cola\) cannot be loaded: .*cola"):
        from_hub(glue_copy, TASKS["cola"])
    with pytest.raises(ConfigError, match=r"nobody/nothing \(mrpc\) cannot be loaded: .*kind: official"):
        from_hub("nobody/nothing", TASKS["mrpc"])


# --- the grammar ------------------------------------------------------------------------------------------------------


def test_synthetic_splits_open_like_all_others() -> None:
    source = SyntheticSource(kind="synthetic", train_rows=12, dev_rows=5)
    raw = open_source(kind_of(TASKS["similarity"]), source, max_train_rows=10)
    assert [len(rows(raw, split)) for split in raw.splits] == [10, 5, 5]
    assert next(raw.read("train")).schema == kind_of(TASKS["similarity"]).schema()
    other = open_source(raw.kind, SyntheticSource(kind="synthetic", train_rows=12, dev_rows=5, seed=1))
    assert other.fingerprint("dev") != raw.fingerprint("dev")
