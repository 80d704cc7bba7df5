"""The lines of a file, read through the official files."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_examples import official, rows, table, write

from raypp.errors import ConfigError


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


def test_bytes_that_are_not_utf8_name_file_line_and_byte(tmp_path: Path) -> None:
    write(tmp_path, dev=table("sentence|label", "a|1"))
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t0\n")
    with pytest.raises(ConfigError) as error:
        rows(official(tmp_path, "sst2"), "train")
    assert str(error.value).startswith(f"{tmp_path}/train.tsv, line 3: byte 0xe9 at position 4 is not UTF-8")
