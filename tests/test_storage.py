"""Storage that fails: temporary failures are retried, permanent ones are an error, a wrong path is reported at once."""

from __future__ import annotations

import errno
import logging
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler

from raypp import storage
from raypp.errors import ConfigError
from raypp.storage import Location
from raypp.training.metrics_file import MetricsFile


class Flaky(FSSpecHandler):  # type: ignore[misc]
    """A folder of this machine whose first `failures` operations fail."""

    def __init__(self, failures: int, error: OSError | None = None) -> None:
        super().__init__(LocalFileSystem())
        self.failures = failures
        self.error = error or OSError(errno.EIO, "the filer does not answer")

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error

    def get_file_info(self, paths: list[str]) -> Any:
        self._fail()
        return super().get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        self._fail()
        return super().get_file_info_selector(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._fail()
        super().create_dir(path, recursive)

    def open_input_stream(self, path: str) -> Any:
        self._fail()
        return super().open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._fail()
        return super().open_output_stream(path, metadata)


USES: dict[str, Callable[[Location], Any]] = {
    "write": lambda folder: (folder / "new").write_text("new"),
    "read": lambda folder: (folder / "old").read_text(),
    "look": lambda folder: (folder / "old").is_file(),
    "list": lambda folder: [child.name for child in folder.children()],
    "hash": lambda folder: (folder / "old").sha256(),
    "make": lambda folder: (folder / "down").make_folder().name,
    "delete": lambda folder: (folder / "old").delete(),
    "upload": lambda folder: (folder / "up").upload(Path(folder.path)),
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.01, 0.02, 0.04))


@pytest.mark.parametrize("use", USES)
def test_a_temporary_failure_is_retried_and_reported_once(
    use: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, failing = tmp_path / "undisturbed", tmp_path / "failing"
    for folder in (undisturbed, failing):
        folder.mkdir()
        (folder / "old").write_text("old")
    expected = USES[use](Location.of(undisturbed))
    handler = Flaky(failures=3)
    with caplog.at_level(logging.WARNING, logger="raypp"):
        assert USES[use](Location(pafs.PyFileSystem(handler), str(failing))) == expected
    assert handler.failures == 0
    assert sorted(path.name for path in failing.rglob("*")) == sorted(path.name for path in undisturbed.rglob("*"))
    assert len(caplog.records) == 1
    assert "the filer does not answer" in caplog.text
    assert str(failing) in caplog.text


@pytest.mark.parametrize("use", USES)
def test_a_permanent_failure_is_an_error(use: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(OSError, match="the filer does not answer"):
        USES[use](Location(pafs.PyFileSystem(Flaky(failures=1000)), str(tmp_path)))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "refusal",
    [
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EACCES, "Permission denied"),
        # pyarrow's messages for AWS's answers, which are all OSErrors.
        OSError(
            "When testing for existence of bucket 'b': AWS Error ACCESS_DENIED during HeadBucket operation: No body."
        ),
        OSError("… AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The specified bucket does not exist"),
        OSError("… AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation: The request signature …"),
    ],
    ids=["EROFS", "EACCES", "ACCESS_DENIED", "NO_SUCH_BUCKET", "SIGNATURE_DOES_NOT_MATCH"],
)
def test_a_refusal_is_reported_at_once(
    use: str, refusal: OSError, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old").write_text("old")
    handler = Flaky(failures=1000, error=refusal)
    with pytest.raises(OSError, match=re.escape(refusal.strerror or str(refusal))):
        USES[use](Location(pafs.PyFileSystem(handler), str(tmp_path)))
    assert handler.failures == 999, "it was asked once"
    assert caplog.records == []


def test_an_overloaded_s3_is_retried(tmp_path: Path) -> None:
    busy = OSError("… AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.")
    handler = Flaky(failures=3, error=busy)
    (Location(pafs.PyFileSystem(handler), str(tmp_path)) / "new").write_text("new")
    assert (tmp_path / "new").read_text() == "new"


def test_a_wrong_path_is_reported_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileNotFoundError):
        (Location.of(tmp_path) / "missing").read_bytes()
    with pytest.raises(NotADirectoryError):
        (Location.of(tmp_path) / "file" / "below").write_bytes(b"")
    assert caplog.records == []


def test_a_log_line_that_does_not_fit_on_the_disk_is_not_written_in_part(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.log(1, {"train/loss": 0.5})
    before = log.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))  # room for a part of a line
    try:
        with pytest.raises(OSError, match="File too large"):
            log.log(2, {"train/loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.read_bytes() == before
    log.log(2, {"train/loss": 0.25})
    assert [record["step"] for record in log.records()] == [1, 2]


@pytest.mark.parametrize(
    "uri", ["s3://KEY:{secret}@bucket/runs?region=us-west-2", "abfs://account@host/runs?sv=2&sig={secret}"]
)
def test_a_secret_in_a_uri_is_refused_and_not_shown(uri: str) -> None:
    """The secret would be recorded with every run, in its files and in W&B."""
    with pytest.raises(ConfigError, match=r"cluster\.storage: the URI of .* contains a secret") as refused:
        Location.of(uri.format(secret="hunter2"), "cluster.storage")
    assert "hunter2" not in str(refused.value)


def test_the_name_of_a_bucket_opens_it_again() -> None:
    uri = "s3://bucket/runs?region=us-west-2&endpoint_override=127.0.0.1%3A9&scheme=http"
    run = Location.of(uri) / "mrpc" / "run-1"
    assert str(run) == uri.replace("/runs", "/runs/mrpc/run-1")
    assert str(Location.of(str(run)).parent) == uri.replace("/runs", "/runs/mrpc")
