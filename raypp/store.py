"""Finished artifacts (features, teacher logits) by content key, on any filesystem that pyarrow knows.

    <store>/v1/<kind>/<key>/<build>/part-….parquet     written by any number of nodes, under unique names
    <store>/v1/<kind>/<key>/<build>/manifest.json      written last: from then on the artifact exists

The key is a hash of everything that determines the content, so all builds of one key are equal and it does no harm when
several run at once: each writes a folder of its own, and readers take the first intact one. Nothing is renamed (S3 has
no rename) and nothing is locked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raypp.errors import ConfigError, StorageFailed
from raypp.storage import Location, is_definite, tidying, with_retries

logger = logging.getLogger("raypp")

LAYOUT = "v1"  # a later layout begins beside this one, so that two versions of raypp can share a store
MANIFEST = "manifest.json"
ABANDONED_AFTER_SECONDS = 24 * 3600  # a live builder writes every few seconds; one silent for a day is dead
READ_THREADS = 8
# What this process knows of finished builds, by their place. They never change: each is hashed, or warned of, once.
_intact: set[str] = set()
_damaged: set[str] = set()


def content_key(**parts: Any) -> str:
    """The sha256 (hex) of `parts` as canonical JSON. Refuses NaN (ValueError) and what JSON cannot hold (TypeError)."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """One file of an artifact: its name inside the build's folder, its size and its checksum (hex)."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. Pickles (the filesystem too), so that workers on other nodes can read it."""

    kind: str
    key: str
    location: Location
    files: tuple[StoredFile, ...]
    rows: int
    description: dict[str, Any]
    extra: dict[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the Parquet files."""
        return tuple(file.name for file in self.files if file.name.endswith(".parquet"))

    def read_part(self, name: str) -> pa.Table:
        """One Parquet file, whole."""
        place = self.location / name
        with storage_errors(place):
            return pq.ParquetFile(pa.BufferReader(place.read_bytes())).read()

    def read_groups(self, name: str, groups: Sequence[int]) -> list[pa.Table]:
        """Some row groups of one Parquet file."""
        place = self.location / name

        def read() -> list[pa.Table]:
            with place.filesystem.open_input_file(place.path) as stream:
                file = pq.ParquetFile(stream)
                return [file.read_row_group(group) for group in groups]

        with storage_errors(place):
            return with_retries(place, read)

    def read_table(self) -> pa.Table:
        """All Parquet files as one table, sorted by the column `row`: the order of the source."""
        with ThreadPoolExecutor(READ_THREADS) as threads:
            table = pa.concat_tables(threads.map(self.read_part, self.parts))
        assert table.num_rows == self.rows, f"{self.location}: {table.num_rows} rows, but the manifest says {self.rows}"
        return table.sort_by("row")


@dataclass
class Build:
    """An artifact under construction, invisible to readers until `finish`. Made by `Store.build`."""

    kind: str
    key: str
    description: Mapping[str, Any]
    location: Location
    artifact: Artifact | None = None

    def finish(self, rows: int, extra: Mapping[str, Any], files: Sequence[StoredFile]) -> Artifact:
        """Writes the manifest.

        Args:
            files: those that count, as `write_part` returned them; what else lies there, half-written or written twice
                by a task that was restarted, is removed.

        Raises:
            ConfigError: a node wrote to a disk of its own.
        """
        assert self.artifact is None, "a build is finished once"
        version = next((found.version for found in importlib.metadata.distributions(name="raypp")), "not installed")
        with storage_errors(self.location):
            found = _files_in(self.location)
            hidden = [file.name for file in files if file.name not in found or found[file.name].size != file.num_bytes]
            if hidden:
                raise ConfigError(
                    f"cluster.store: {self.location} is not the same folder on every node: {hidden[0]} was written "
                    "there by another node and is not seen here. Use a shared filesystem or a bucket"
                )
            manifest = {"kind": self.kind, "key": self.key, "description": dict(self.description), "rows": rows}
            manifest |= {"extra": dict(extra), "files": [asdict(file) for file in files]}
            manifest |= {"created_seconds": round(time.time(), 3), "raypp_version": version}
            (self.location / MANIFEST).write_json(manifest)
            self.artifact = _read_manifest(self.location)
        with tidying(self.location):
            for name in found.keys() - {file.name for file in files}:
                (self.location / name).delete()
        return self.artifact


@dataclass(frozen=True)
class Store:
    """Artifacts below one folder, which every node of the cluster sees under the same path."""

    location: Location

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact, or None where none is finished and intact.

        Sizes are always checked, checksums once per process; a damaged build is passed over with a
        warning, for the caller to build again. Raises ConfigError where the store cannot be read.
        """
        folder = self.location / LAYOUT / kind / key
        with storage_errors(folder):
            for build in folder.children():
                if str(build) in _damaged or not (build / MANIFEST).is_file():
                    continue
                try:
                    return _open_build(build)
                except FileNotFoundError:  # another builder is just removing it
                    continue
                except _DamagedError as damage:
                    _damaged.add(str(build))
                    logger.warning("store: %s; this copy of the %s is not used and will be rebuilt", damage, kind)
        return None

    @contextmanager
    def build(self, kind: str, key: str, description: Mapping[str, Any]) -> Iterator[Build]:
        """A folder to write the artifact's files into; `Build.finish` makes them an artifact.

        Left without `finish` (an error, an interrupt), it is removed. A finished build also removes what others left:
        damaged copies of the key that this process has met, and folders of any key of the kind, abandoned a day ago by
        a builder that was killed.
        """
        folder = self.location / LAYOUT / kind / key
        # The time comes first, so readers keep to the oldest intact build and do not wander as later ones finish.
        location = folder / f"{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:12]}"
        with storage_errors(location):
            location.make_folder()
        build = Build(kind, key, description, location)
        try:
            yield build
            assert build.artifact is not None, "a build was left without finish()"
        finally:
            if build.artifact is None:
                with tidying(location):
                    location.delete()
        with tidying(folder.parent):
            for other in (build for key_folder in folder.parent.children() for build in key_folder.children()):
                with tidying(other):  # one that belongs to somebody else is no reason to leave the others
                    if (other.parent == folder and str(other) in _damaged) or _is_abandoned(other):
                        other.delete()


def write_part(folder: Location, table: pa.Table, row_group_size: int | None = None) -> StoredFile:
    """Writes a table to a Parquet file of unique name in a build's folder; any node may, at any time."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    content = buffer.getvalue().to_pybytes()
    name = f"part-{uuid.uuid4().hex}.parquet"
    with storage_errors(folder):
        (folder / name).write_bytes(content)
    return StoredFile(name, len(content), hashlib.sha256(content).hexdigest())


@contextmanager
def storage_errors(place: Location) -> Iterator[None]:
    """Turns what the filesystem refuses into a ConfigError that names the setting and the place, and what it fails at
    though nothing is wrong with the place (a network, a full disk) into StorageFailed."""
    try:
        yield
    except OSError as error:
        if is_definite(error):
            message = f"cluster.store: {place} is no folder that all nodes can read and write: {error}"
            raise ConfigError(message) from error
        raise StorageFailed(f"the store fails at {place}: {error}") from error


class _DamagedError(Exception):
    """A finished build whose files are not what its manifest says."""


def _open_build(build: Location) -> Artifact:
    """The artifact of a folder that has a manifest; raises _DamagedError naming the file that is wrong."""
    try:
        artifact = _read_manifest(build)
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{build / MANIFEST} cannot be read ({type(error).__name__}: {error})") from error
    found = _files_in(build)
    hashing = str(build) not in _intact

    def check(file: StoredFile) -> None:
        if file.name not in found or found[file.name].size != file.num_bytes:
            raise _DamagedError(f"{build / file.name} is not there with its {file.num_bytes} bytes")
        if hashing and (build / file.name).sha256() != file.sha256:
            raise _DamagedError(f"{build / file.name} has another checksum than when it was written")

    with ThreadPoolExecutor(READ_THREADS) as threads:
        list(threads.map(check, artifact.files))
    _intact.add(str(build))
    return artifact


def _read_manifest(build: Location) -> Artifact:
    fields = (build / MANIFEST).read_json()
    files = tuple(StoredFile(**file) for file in fields["files"])
    named = {name: fields[name] for name in ("kind", "key", "rows", "description", "extra")}
    return Artifact(location=build, files=files, **named)


def _files_in(folder: Location) -> dict[str, pafs.FileInfo]:
    """Every file below a folder, by its name relative to it."""
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    infos = with_retries(folder, lambda: folder.filesystem.get_file_info(selector))
    return {info.path[len(folder.path) :].lstrip("/"): info for info in infos if info.is_file}


def _is_abandoned(build: Location) -> bool:
    """Whether a build has no manifest and has written nothing for a day."""
    started = build.name.partition("-")[0]
    if not started.isdigit():  # not a build, but somebody else's file
        return False
    oldest_seconds = time.time() - ABANDONED_AFTER_SECONDS
    if int(started) / 1000 > oldest_seconds or (build / MANIFEST).is_file():
        return False
    return all(info.mtime.timestamp() < oldest_seconds for info in _files_in(build).values())
