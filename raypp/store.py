"""Finished artifacts (features, teacher logits) by content key, on any filesystem that pyarrow supports.

    <store>/v1/<kind>/<key>/<build>/part-….parquet     written by any number of nodes, under unique names
    <store>/v1/<kind>/<key>/<build>/manifest.json      written last; the artifact exists once it is written

The key is a hash of everything that determines the content, so all builds of one key are equal. Several builds of one
key may run at the same time: each writes its own folder, and readers use the first intact one. The store renames no
files (S3 has no rename) and needs no locks.
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
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raypp.errors import ConfigError, StorageFailed
from raypp.storage import Location, is_definite, tidying, with_retries

logger = logging.getLogger("raypp")

LAYOUT = "v1"  # another layout gets another folder, so that two versions of raypp can share a store
MANIFEST = "manifest.json"
ABANDONED_AFTER_SECONDS = 24 * 3600  # a live builder writes every few seconds; one that wrote nothing for a day is dead
READ_THREADS = 8


@dataclass
class VerifiedBuilds:
    """The finished builds, by path, that this process has verified. Builds never change, so each is verified once, and
    the user is warned of a damaged one once."""

    intact: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Forgets all builds, like a new process."""
        self.intact.clear()
        self.damaged.clear()


verified_builds = VerifiedBuilds()


def content_key(**parts: Any) -> str:
    """The sha256 (hex) of `parts` as canonical JSON.

    Raises:
        TypeError: JSON cannot represent a value.
        ValueError: a number is not finite.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """One file of an artifact: its name in the build's folder, its size and its checksum (hex)."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. It can be pickled (with its filesystem), so that workers on other nodes can read it."""

    kind: str
    key: str
    location: Location
    files: tuple[StoredFile, ...]
    rows: int
    description: dict[str, Any]
    extra: dict[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its Parquet files."""
        return tuple(file.name for file in self.files if file.name.endswith(".parquet"))

    def read_part(self, name: str) -> pa.Table:
        """Reads one Parquet file."""
        place = self.location / name
        with storage_errors(place):
            return pq.ParquetFile(pa.BufferReader(place.read_bytes())).read()

    def read_groups(self, name: str, groups: Sequence[int]) -> list[pa.Table]:
        """Reads some row groups of one Parquet file."""
        place = self.location / name

        def read() -> list[pa.Table]:
            with place.filesystem.open_input_file(place.path) as stream:
                file = pq.ParquetFile(stream)
                return [file.read_row_group(group) for group in groups]

        with storage_errors(place):
            return with_retries(place, read)

    def read_table(self) -> pa.Table:
        """Reads all Parquet files into one table, sorted by the column `row`, which is the order of the source."""
        with ThreadPoolExecutor(READ_THREADS) as threads:
            table = pa.concat_tables(threads.map(self.read_part, self.parts))
        assert table.num_rows == self.rows, f"{self.location}: {table.num_rows} rows, but the manifest says {self.rows}"
        return table.sort_by("row")


@dataclass
class Build:
    """An artifact that is being built. Readers do not see it before `finish`. Created by `Store.build`."""

    kind: str
    key: str
    description: Mapping[str, Any]
    location: Location
    artifact: Artifact | None = None

    def finish(self, rows: int, extra: Mapping[str, Any], files: Sequence[StoredFile]) -> Artifact:
        """Writes the manifest, which makes the build an artifact.

        Args:
            files: the artifact's files, as `write_part` returned them. All other files in the folder are removed: a
                restarted task may have left partial or duplicate ones.

        Raises:
            ConfigError: a node wrote to its own disk.
        """
        assert self.artifact is None, "a build is finished only once"
        version = next((found.version for found in importlib.metadata.distributions(name="raypp")), "not installed")
        with storage_errors(self.location):
            found = _files_in(self.location)
            hidden = [file.name for file in files if file.name not in found or found[file.name].size != file.num_bytes]
            if hidden:
                raise ConfigError(
                    f"cluster.store: {self.location} is not the same folder on every node: another node wrote "
                    f"{hidden[0]} there, and this node does not see it. Use a shared filesystem or a bucket"
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
    """Artifacts below one folder, which every node of the cluster must see under the same path."""

    location: Location

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact, or None if no build is finished and intact.

        Sizes are always checked, checksums once per process. A damaged build is skipped with a warning, so that the
        caller builds it again.

        Raises:
            ConfigError: the store cannot be read.
            StorageFailed: the storage fails after all retries.
        """
        folder = self.location / LAYOUT / kind / key
        with storage_errors(folder):
            for build in folder.children():
                if str(build) in verified_builds.damaged or not (build / MANIFEST).is_file():
                    continue
                try:
                    return _open_build(build)
                except FileNotFoundError:  # another builder has just removed it
                    continue
                except _DamagedError as damage:
                    verified_builds.damaged.add(str(build))
                    logger.warning("store: %s; this copy of the %s is not used and will be rebuilt", damage, kind)
        return None

    @contextmanager
    def build(self, kind: str, key: str, description: Mapping[str, Any]) -> Iterator[Build]:
        """Yields a folder to write the artifact's files into; `Build.finish` makes it an artifact.

        If the context ends without `finish` (an error, an interrupt), the folder is removed. After a finished build,
        two kinds of leftovers are removed, too: damaged copies of the same key that this process has found, and folders
        of any key of this kind that a killed builder abandoned more than a day ago.

        Raises:
            ConfigError: the store cannot be written.
            StorageFailed: the storage fails after all retries.
        """
        folder = self.location / LAYOUT / kind / key
        # Names begin with the time, so that readers keep to the oldest intact build when later ones are finished.
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
                with tidying(other):  # if another user owns this one, the rest can still be removed
                    if (other.parent == folder and str(other) in verified_builds.damaged) or _is_abandoned(other):
                        other.delete()


def write_part(folder: Location, table: pa.Table, row_group_size: int | None = None) -> StoredFile:
    """Writes a table to a Parquet file with a unique name in a build's folder. Any node may call this at any time."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    content = buffer.getvalue().to_pybytes()
    name = f"part-{uuid.uuid4().hex}.parquet"
    with storage_errors(folder):
        (folder / name).write_bytes(content)
    return StoredFile(name, len(content), hashlib.sha256(content).hexdigest())


@contextmanager
def storage_errors(place: Location) -> Iterator[None]:
    """Converts an OSError into a ConfigError that names the setting and the place or, if the error may be temporary (a
    network, a full disk), into StorageFailed."""
    try:
        yield
    except OSError as error:
        if is_definite(error):
            message = f"cluster.store: {place} is not a folder that all nodes can read and write: {error}"
            raise ConfigError(message) from error
        raise StorageFailed(f"the store fails at {place}: {error}") from error


class _DamagedError(Exception):
    """A finished build whose files do not match its manifest."""


def _open_build(build: Location) -> Artifact:
    """The artifact of a folder that has a manifest.

    Raises:
        _DamagedError: names the file that does not match the manifest.
    """
    try:
        artifact = _read_manifest(build)
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{build / MANIFEST} cannot be read ({type(error).__name__}: {error})") from error
    found = _files_in(build)
    hashing = str(build) not in verified_builds.intact

    def check(file: StoredFile) -> None:
        if file.name not in found or found[file.name].size != file.num_bytes:
            raise _DamagedError(f"{build / file.name} is missing or does not have {file.num_bytes} bytes")
        if hashing and (build / file.name).sha256() != file.sha256:
            raise _DamagedError(f"{build / file.name} has another checksum than when it was written")

    with ThreadPoolExecutor(READ_THREADS) as threads:
        list(threads.map(check, artifact.files))
    verified_builds.intact.add(str(build))
    return artifact


def _read_manifest(build: Location) -> Artifact:
    fields = (build / MANIFEST).read_json()
    files = tuple(StoredFile(**file) for file in fields["files"])
    named = {name: fields[name] for name in ("kind", "key", "rows", "description", "extra")}
    return Artifact(location=build, files=files, **named)


def _files_in(folder: Location) -> dict[str, pafs.FileInfo]:
    """All files below a folder, by their path relative to it."""
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    infos = with_retries(folder, lambda: folder.filesystem.get_file_info(selector))
    return {info.path[len(folder.path) :].lstrip("/"): info for info in infos if info.is_file}


def _is_abandoned(build: Location) -> bool:
    """Whether a build has no manifest, and nothing was written to it for a day."""
    started = build.name.partition("-")[0]
    if not started.isdigit():  # not a build of raypp
        return False
    oldest_seconds = time.time() - ABANDONED_AFTER_SECONDS
    if int(started) / 1000 > oldest_seconds or (build / MANIFEST).is_file():
        return False
    return all(info.mtime.timestamp() < oldest_seconds for info in _files_in(build).values())
