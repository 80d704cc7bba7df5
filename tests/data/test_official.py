"""The official files, as published or in the published layout, are read exactly; errors name file and line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from raw_examples import official, rows, table, write

from raypp.config import OfficialSource
from raypp.data.sources import open_source
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.tasks import TASKS

# Task, folder, split, published number of rows (None: copies differ), positions of the sentences and of the label.
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


def test_a_submission_next_to_the_diagnostic_set_is_not_taken_for_it(tmp_path: Path) -> None:
    """The submission's file has the other of the set's published names."""
    files = {"diagnostic": table("index|sentence1|sentence2", "0|A.|B."), "AX": table("index|prediction", "0|neutral")}
    assert len(rows(official(write(tmp_path, **files), "ax"), "test")) == 1


def test_the_error_for_a_missing_diagnostic_set_has_both_of_its_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks diagnostic\.tsv \(or AX\.tsv\) of AX; it holds: train\.tsv"):
        official(write(tmp_path, train=table("index|sentence1|sentence2")), "ax", required=("test",))


def test_surplus_fields_give_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_all_problems_at_opening_are_reported_together(tmp_path: Path) -> None:
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
