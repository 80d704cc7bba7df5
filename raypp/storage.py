"""Files in a folder of any filesystem that pyarrow knows: local, NFS, s3://, gs://.

Object stores have no rename and no append, so nothing here relies on either. What fails for a while (a network, a
filer that restarts, a full disk that somebody empties) is tried again for about a minute, here and nowhere else, and
what is refused is not; only `chunks`, a stream that cannot be begun again, is read in one go.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import parse_qs, urlsplit

import pyarrow.fs as pafs

from raypp.errors import ConfigError

logger = logging.getLogger("raypp")

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES = 1 << 20
# Waited between one try and the next.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# What pyarrow takes in a URI and nobody else should read.
SECRET_OPTIONS = {"access_key", "secret_key", "session_token", "client_secret", "sig"}
# These say that a path is not what it should be.
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
# Of S3, pyarrow gives the answer in words alone.
_REFUSED_BY_S3 = re.compile(
    "AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
    "|INVALID_SIGNATURE|MISSING_AUTHENTICATION_TOKEN)|Bucket '.*' not found|Looks like the configured region is"
)


def is_definite(error: OSError) -> bool:
    """Whether no waiting changes it: a path that is not what it should be, a read-only filesystem, credentials that are
    refused, no such bucket. All else may pass."""
    if isinstance(error, _WRONG_PATH) or error.errno == errno.EROFS:
        return True
    return _REFUSED_BY_S3.search(str(error)) is not None


def with_retries(place: object, attempt: Callable[[], T]) -> T:
    """What `attempt` returns, tried again with growing pauses while storage fails; the last OSError where it stays so.

    Args:
        attempt: may be done twice.
    """
    for number, pause_seconds in enumerate(PAUSES_SECONDS):
        try:
            return attempt()
        except OSError as error:
            if is_definite(error):
                raise
            level = logging.INFO if number else logging.WARNING  # one line is enough
            logger.log(level, "%s fails (%s); trying again for %.0f s", place, error, sum(PAUSES_SECONDS))
        time.sleep(pause_seconds)
    return attempt()


@contextmanager
def tidying(place: object) -> Iterator[None]:
    """What is not removed only costs space, so failing to is reported and the work goes on."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be tidied up (%s)", place, error)


def _retried(method: Callable[Concatenate[Location, P], T]) -> Callable[Concatenate[Location, P], T]:
    """A method of Location that is tried again while storage fails."""

    @functools.wraps(method)
    def patient(self: Location, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return with_retries(self, lambda: method(self, *args, **kwargs))

    return patient


def name_of(reference: str) -> str:
    """The last part of a path or URI, without asking any filesystem."""
    path = urlsplit(reference).path if "://" in reference else reference
    return path.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Location:
    """A file or folder: a filesystem and a path in it. `location / "name"` goes down."""

    filesystem: pafs.FileSystem
    path: str
    options: str = ""
    """What a URI says of its filesystem, such as `region=us-west-2`: without, nobody could open it by its name."""

    @classmethod
    def of(cls, uri: str | Path, field: str = "path") -> Location:
        """Opens a local path or a URI; raises ConfigError naming `field` if it is neither."""
        text = str(uri)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), os.path.abspath(text))
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise ConfigError(f"{field}: {text!r} cannot be opened: {error}") from error
        if parts.password or SECRET_OPTIONS & parse_qs(parts.query).keys():
            # Not shown; and it would be recorded with the run, in its files and in W&B.
            raise ConfigError(
                f"{field}: the URI of {parts.hostname} has a secret in it; leave it out, and give it by the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as the cloud's own tools read it)"
            )
        try:
            filesystem, path = pafs.FileSystem.from_uri(text)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{field}: {text!r} cannot be opened: {error}") from error
        return cls(filesystem, path, parts.query)

    def __truediv__(self, name: str) -> Location:
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        return f"{self.filesystem.type_name}://{self.path}" + (f"?{self.options}" if self.options else "")

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        return replace(self, path=self.path.rstrip("/").rsplit("/", 1)[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @_retried
    def is_file(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == pafs.FileType.File)

    @_retried
    def is_folder(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == pafs.FileType.Directory)

    @_retried
    def make_folder(self) -> Location:
        self.filesystem.create_dir(self.path, recursive=True)
        return self

    @_retried
    def children(self) -> list[Location]:
        """Files and folders directly inside, by name; empty where there is no such folder."""
        try:
            infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        except FileNotFoundError:  # gone between pyarrow's look at it and its listing
            return []
        return [self / info.base_name for info in sorted(infos, key=lambda info: info.base_name)]

    @_retried
    def files(self) -> list[Location]:
        """All files below this folder, by path."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return [replace(self, path=i.path) for i in sorted(infos, key=lambda i: i.path) if i.is_file]

    @_retried
    def delete(self) -> None:
        """Removes the file or folder; nothing to remove is fine (somebody else may have been first)."""
        kind = self.filesystem.get_file_info(self.path).type
        try:
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            pass

    @_retried
    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8")

    def read_json(self) -> Any:
        return json.loads(self.read_text())

    @_retried
    def write_bytes(self, content: bytes) -> None:
        """Writes the whole file. Local writes go through a temporary name, so a reader never sees half of it."""
        if not self.is_local:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(content)
            return
        temporary = f"{self.path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    @_retried
    def sync(self) -> None:
        """Has the files of this local folder outlast the machine: what is written after it is on the disk after it."""
        folder = Path(self.path)
        for path in (*folder.iterdir(), folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write_text(self, content: str) -> None:
        self.write_bytes(content.encode("utf-8"))

    def write_json(self, content: Any) -> None:
        self.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def chunks(self) -> Iterator[bytes]:
        """The file's content, a MiB at a time."""
        with self.filesystem.open_input_stream(self.path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    @_retried
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    @_retried
    def download(self, folder: Path) -> Path:
        """A local copy of this folder under `folder`; the folder itself if it is local already."""
        if self.is_local:
            return Path(self.path)
        pafs.copy_files(self.path, str(folder), source_filesystem=self.filesystem, chunk_size=CHUNK_BYTES)
        return folder

    @_retried
    def upload(self, folder: Path) -> None:
        """Copies a local folder's files to this folder."""
        self.make_folder()
        pafs.copy_files(
            str(folder), self.path, destination_filesystem=self.filesystem, source_filesystem=pafs.LocalFileSystem()
        )
