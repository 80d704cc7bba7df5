"""Files and folders on any filesystem that pyarrow supports: local, NFS, s3://, gs://.

Object stores have no rename and no append, so this module relies on neither. An operation that fails for a reason that
may be temporary (a network, a file server that restarts, a full disk) is retried for about a minute, and only here; an
operation that is refused fails at once. `chunks` is not retried, because a stream cannot be restarted.
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
# Pauses between two attempts.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# Options of a URI that pyarrow accepts and that hold secrets.
SECRET_OPTIONS = {"access_key", "secret_key", "session_token", "client_secret", "sig"}
# Errors that mean that the path itself is wrong.
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
# pyarrow reports errors of S3 only as text.
_REFUSED_BY_S3 = re.compile(
    "AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
    "|INVALID_SIGNATURE|MISSING_AUTHENTICATION_TOKEN)|Bucket '.*' not found|Looks like the configured region is"
)


def is_definite(error: OSError) -> bool:
    """Whether retrying cannot help: the path is wrong, the filesystem is read-only, the credentials are refused, or
    there is no such bucket. All other errors may be temporary."""
    if isinstance(error, _WRONG_PATH) or error.errno == errno.EROFS:
        return True
    return _REFUSED_BY_S3.search(str(error)) is not None


def with_retries(place: object, attempt: Callable[[], T]) -> T:
    """Calls `attempt`, and calls it again with growing pauses while storage fails.

    Args:
        place: named in the warning.
        attempt: must be safe to repeat.

    Returns:
        What `attempt` returns.

    Raises:
        OSError: the error is definite (`is_definite`), or the last attempt failed.
    """
    for number, pause_seconds in enumerate(PAUSES_SECONDS):
        try:
            return attempt()
        except OSError as error:
            if is_definite(error):
                raise
            level = logging.INFO if number else logging.WARNING  # the user needs to see only the first failure
            logger.log(level, "%s fails (%s); trying again for %.0f s", place, error, sum(PAUSES_SECONDS))
        time.sleep(pause_seconds)
    return attempt()


@contextmanager
def tidying(place: object) -> Iterator[None]:
    """Logs an error of the storage and continues: a file that is not removed only costs space."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be tidied up (%s)", place, error)


def _retried(method: Callable[Concatenate[Location, P], T]) -> Callable[Concatenate[Location, P], T]:
    """Makes a method of Location retry while storage fails, unless the location is not `patient`."""

    @functools.wraps(method)
    def retrying(self: Location, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self.patient:
            return method(self, *args, **kwargs)
        return with_retries(self, lambda: method(self, *args, **kwargs))

    return retrying


def name_of(reference: str) -> str:
    """The last part of a path or URI. Accesses no filesystem."""
    path = urlsplit(reference).path if "://" in reference else reference
    return path.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Location:
    """A file or folder: a filesystem and a path in it. `location / "name"` is a child of it."""

    filesystem: pafs.FileSystem
    path: str
    options: str = ""
    """The options of the URI, such as `region=us-west-2`, so that `str(location)` can be opened again."""
    patient: bool = True
    """Whether an operation is tried again if it fails for a reason that may be temporary."""

    @classmethod
    def of(cls, uri: str | Path, field: str = "path") -> Location:
        """The location of a local path or a URI.

        Raises:
            ConfigError: naming `field`; the URI cannot be opened, or it contains a secret.
        """
        text = str(uri)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), os.path.abspath(text))
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise ConfigError(f"{field}: {text!r} cannot be opened: {error}") from error
        if parts.password or SECRET_OPTIONS & parse_qs(parts.query).keys():
            # The URI would be recorded with the run, in its files and in W&B. The message must not show it, either.
            raise ConfigError(
                f"{field}: the URI of {parts.hostname} contains a secret; leave it out, and give it in the "
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
        """Files and folders directly in this folder, sorted by name; empty if there is no such folder."""
        try:
            infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        except FileNotFoundError:  # the folder was removed between pyarrow's check and its listing
            return []
        return [self / info.base_name for info in sorted(infos, key=lambda info: info.base_name)]

    @_retried
    def files(self) -> list[Location]:
        """All files below this folder, sorted by path."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return [replace(self, path=i.path) for i in sorted(infos, key=lambda i: i.path) if i.is_file]

    @_retried
    def delete(self) -> None:
        """Removes the file or folder, if it exists. Another process may remove it at the same time."""
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
        """Writes the whole file. A local file gets a temporary name first, so that readers never see a partial file."""
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
        """Syncs the files of this local folder to disk, so that they survive a crash of the machine."""
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
        """Yields the file's content in chunks of 1 MiB."""
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
        """A local copy of this folder, in `folder`; if this folder is local, its own path."""
        if self.is_local:
            return Path(self.path)
        pafs.copy_files(self.path, str(folder), source_filesystem=self.filesystem, chunk_size=CHUNK_BYTES)
        return folder

    @_retried
    def upload(self, folder: Path) -> None:
        """Copies the files of a local folder to this folder."""
        self.make_folder()
        pafs.copy_files(
            str(folder), self.path, destination_filesystem=self.filesystem, source_filesystem=pafs.LocalFileSystem()
        )
