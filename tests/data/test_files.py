"""The user's own files: all formats give the same rows; errors name file and line."""

from __future__ import annotations

import csv
import json
import logging
import secrets
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_examples import rows

from raypp.config import Columns, FilesSource, OwnTask
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.tasks import resolve_task

SENTIMENT = OwnTask(name="reviews", labels=("bad", "good"))
PAIRS = OwnTask(name="pairs", kind="regression", pair=True)
REVIEWS = [
    {"text": 'He said "no", twice', "stars": "good"},
    {"text": "two\nlines\tand a tab", "stars": "bad"},
    {"text": " 漢字 ", "stars": "good"},
]


def save(file: Path, records: list[dict[str, Any]]) -> str:
    """Writes records in the format of the file's ending."""
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
def test_a_boolean_is_the_label_whose_name_means_the_same(tmp_path: Path, names: tuple[str, ...]) -> None:
    values = [True, False, True]
    task = OwnTask(name="claims", labels=names)
    raw = own(task, save(tmp_path / "train.jsonl", [{"sentence1": "x", "label": value} for value in values]))
    said = [names[row["label"]].lower() for row in rows(raw, "train")]
    assert said in (["true", "false", "true"], ["yes", "no", "yes"])


def test_a_missing_label_is_not_the_class_named_none(tmp_path: Path) -> None:
    task = OwnTask(name="severity", labels=("None", "Mild"))
    records = [{"sentence1": "x", "label": "None"}, {"sentence1": "y", "label": None}]
    with pytest.raises(ConfigError, match="line 2: label is None; allowed: 0, 1, None, Mild"):
        rows(own(task, save(tmp_path / "train.jsonl", records)), "train")


QUOTED = 'sentence1\tlabel\n"I came.\t1\nI saw."\t0\n"Whole."\t1\n'


def test_quotes_are_ordinary_characters_with_quotes_plain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_only_the_needed_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_reading_parquet_takes_the_memory_of_a_row_group_and_not_of_the_file(tmp_path: Path) -> None:
    file, texts = tmp_path / "train.parquet", [secrets.token_hex(500) for _ in range(1000)]
    schema = pa.schema([("sentence1", pa.string()), ("label", pa.int64())])
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for _ in range(40):  # row groups of a mebibyte
            writer.write_table(pa.table({"sentence1": texts, "label": [0] * 1000}, schema))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in own(SENTIMENT, str(file)).read("train")]
    assert len(held) == 40, "a batch for each row group"
    assert max(held) < 30 * 2**20 < file.stat().st_size


def test_all_wrong_paths_are_reported_together(tmp_path: Path) -> None:
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


def test_a_recorded_source_opens_like_the_given_one(tmp_path: Path) -> None:
    file = save(tmp_path / "train.csv", [{"text": "x", "label": 1}])
    given = FilesSource(kind="files", train=file, dev=file, columns=Columns(sentence1="text"))
    recorded = FilesSource.model_validate(given.model_dump(mode="json"))
    first, again = (open_source(kind_of(resolve_task(SENTIMENT, source)), source) for source in (given, recorded))
    assert rows(again, "dev") == rows(first, "dev") == [{"sentence1": "x", "label": 1}]
    assert again.fingerprint("train") == first.fingerprint("train")


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (SENTIMENT, ["good", "bad"]),
        (SENTIMENT, [1, 0]),
        (SENTIMENT, [1.0, 0.0]),
        (SENTIMENT, [True, False]),
        (PAIRS, [0.5, -3.25, 1e-7]),
        (PAIRS, [2, 4]),
    ],
)
@pytest.mark.parametrize("unusual", ["", " ", "漢字", None])
def test_parquet_is_read_by_columns_as_other_formats_are_by_rows(
    tmp_path: Path, task: OwnTask, labels: list[Any], unusual: str | None
) -> None:
    """More rows than a batch has; the unusual text is allowed next to another one, if it is a text."""
    records = [
        {
            "sentence1": f"sentence {row}",
            "sentence2": f"and {row}",
            "label": labels[row % len(labels)],
            "other": f"{row}",
        }
        for row in range(12_000)
    ]
    records[11_000]["sentence2" if task.pair else "other"] = unusual
    as_rows, as_columns = (save(tmp_path / f"rows.{ending}", records) for ending in ("jsonl", "parquet"))
    if unusual is None and task.pair:
        for file in (as_rows, as_columns):
            with pytest.raises(ConfigError, match=rf"{file}, (line|row) 11001: sentence2 is None"):
                rows(own(task, file), "train")
    else:
        assert rows(own(task, as_columns), "train") == rows(own(task, as_rows), "train")


def test_a_limit_ends_the_reading_of_parquet_before_what_is_wrong_behind_it(tmp_path: Path) -> None:
    records = [{"sentence1": f"sentence {row}", "label": row % 2} for row in range(12_000)]
    records[10_500]["label"] = 7
    file = save(tmp_path / "rows.parquet", records)
    source = FilesSource(kind="files", train=file, dev=file)
    kind = kind_of(resolve_task(SENTIMENT, source))
    for limit in (9_999, 10_000, 10_500):
        assert len(rows(open_source(kind, source, max_train_rows=limit), "train")) == limit
    with pytest.raises(ConfigError, match="row 10501: label is 7; allowed: "):
        rows(open_source(kind, source, max_train_rows=10_501), "train")


def test_parquet_text_that_is_not_utf8_is_one_error(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"sentence1": broken, "label": pa.array([1])}), tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match=r"cannot be read as Parquet: .*UTF8"):
        rows(own(SENTIMENT, str(tmp_path / "rows.parquet")), "train")
