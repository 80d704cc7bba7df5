"""The store: an artifact is complete or absent, even if a builder is killed, a file is damaged or it is built twice."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypp import store as store_module
from raypp.errors import ConfigError, StorageFailed
from raypp.storage import Location
from raypp.store import Artifact, Store, StoredFile, content_key, write_part

KIND, KEY = "features", content_key(test=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Location.of(tmp_path / "store"))


@pytest.fixture(autouse=True)
def _new_process() -> None:
    """Each test begins like a process that has verified no build."""
    store_module.verified_builds.clear()


def table_of(rows: list[int]) -> pa.Table:
    return pa.table({"row": pa.array(rows, pa.int64()), "value": [f"value {row}" for row in rows]})


def build_artifact(store: Store, parts: tuple[list[int], ...] = ([0, 1, 2], [3, 4])) -> Artifact:
    with store.build(KIND, KEY, {"made": "for a test"}) as build:
        files = [write_part(build.location, table_of(rows)) for rows in parts]
        return build.finish(sum(map(len, parts)), {"answer": 42}, files)


def builds(store: Store) -> list[Location]:
    return (store.location / store_module.LAYOUT / KIND / KEY).children()


def local(artifact: Artifact, name: str) -> Path:
    return Path((artifact.location / name).path)


def test_content_key_depends_on_content_alone() -> None:
    assert content_key(a=1, b=[1, 2]) == content_key(b=(1, 2), a=1)
    # printf '{"a":1,"b":"\\u00fc"}' | sha256sum
    assert content_key(b="ü", a=1) == "810a43bc0215b9ea42773ffb4fc92c184749b3676b4e3fda524018da652e229f"
    assert len({content_key(a=1), content_key(a=2), content_key(b=1), content_key(a="1"), content_key(a=[1])}) == 5
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key(a=float("nan"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        content_key(a=object())


def test_finished_artifact_is_found_as_it_was_built(store: Store) -> None:
    assert store.find(KIND, KEY) is None
    built = build_artifact(store)
    found = store.find(KIND, KEY)
    assert found == built
    assert (found.kind, found.key, found.rows, found.extra) == (KIND, KEY, 5, {"answer": 42})
    assert found.description == {"made": "for a test"}
    assert store.find("logits", KEY) is None
    assert store.find(KIND, content_key(test=2)) is None


def test_manifest_names_time_version_and_files(store: Store) -> None:
    before = time.time()
    artifact = build_artifact(store)
    manifest = json.loads(local(artifact, "manifest.json").read_text())
    assert before - 1 < manifest["created_seconds"] < time.time() + 1
    assert manifest["raypp_version"]
    for file in manifest["files"]:
        content = local(artifact, file["name"]).read_bytes()
        assert file["num_bytes"] == len(content)
        assert file["sha256"] == (artifact.location / file["name"]).sha256()


def test_parts_are_read_in_the_order_of_rows(store: Store) -> None:
    artifact = build_artifact(store, ([7, 2], [9], [0, 8, 1]))
    assert artifact.read_table() == table_of([0, 1, 2, 7, 8, 9])


def test_artifact_can_be_pickled(store: Store) -> None:
    artifact = pickle.loads(pickle.dumps(build_artifact(store)))
    assert artifact.read_table() == table_of([0, 1, 2, 3, 4])


def test_store_works_on_any_filesystem(bucket: Location) -> None:
    store = Store(bucket / "store")
    assert not store.location.is_local
    assert store.find(KIND, KEY) is None
    build_artifact(store)
    found = store.find(KIND, KEY)
    assert found is not None
    assert found.read_table() == table_of([0, 1, 2, 3, 4])


def test_other_files_are_removed_when_a_build_is_finished(store: Store) -> None:
    with store.build(KIND, KEY, {}) as build:
        counts = write_part(build.location, table_of([0]))
        write_part(build.location, table_of([0]))  # by a task that was restarted
        (build.location / "part-1.parquet.123.tmp").write_bytes(b"PAR1")  # a partial file of a task that was killed
        (build.location / "tokens.json").write_text("{}")
        others = [StoredFile("tokens.json", 2, (build.location / "tokens.json").sha256())]
        artifact = build.finish(1, {}, [counts, *others])
    assert {file.name for file in artifact.location.files()} == {"manifest.json", counts.name, "tokens.json"}
    assert store.find(KIND, KEY) == artifact


def test_unfinished_build_is_invisible_and_removed_on_error(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.build(KIND, KEY, {}) as build:  # noqa: PT012
        write_part(build.location, table_of([0]))
        assert store.find(KIND, KEY) is None
        raise KeyboardInterrupt
    assert store.find(KIND, KEY) is None
    assert builds(store) == []


def _killed_builder(folder: str, key: str) -> None:
    store = Store(Location.of(folder))
    with store.build(KIND, key, {}) as build:
        write_part(build.location, table_of([0]))
        os.kill(os.getpid(), 9)


def kill_builder(store: Store, key: str = KEY) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_builder, args=(store.location.path, key))
    process.start()
    process.join()
    assert process.exitcode == -9


def test_killed_builder_leaves_nothing_visible_to_readers(store: Store) -> None:
    kill_builder(store)
    assert len(builds(store)) == 1
    assert store.find(KIND, KEY) is None
    # The next builder does not treat a recent folder as abandoned, because its builder may still be running.
    build_artifact(store)
    assert len(builds(store)) == 2


def test_leftovers_of_a_builder_killed_a_day_ago_are_removed_by_any_build_of_the_kind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_builder(store, "another key")
    finished = build_artifact(store)
    folder = finished.location.parent.parent / "another key"
    assert len(folder.files()) == 1, "a young one may be at work"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    with store.build("logits", KEY, {}) as build:
        build.finish(0, {}, [])
    assert len(folder.files()) == 1, "that is the next builder's of its kind"
    build_artifact(store)
    assert folder.children() == []
    assert store.find(KIND, KEY) == finished, "what is finished stays, however old"


def test_folder_abandoned_a_day_ago_is_removed_by_the_next_builder(store: Store) -> None:
    folder = store.location / store_module.LAYOUT / KIND / KEY
    yesterday = int((time.time() - 25 * 3600) * 1000)
    dead, slow = (folder / f"{yesterday:013d}-{name}" for name in ("dead", "slow"))
    for build in (dead, slow):
        part = write_part(build.make_folder(), table_of([0]))
        os.utime((build / part.name).path, (yesterday / 1000, yesterday / 1000))
    write_part(slow, table_of([1]))  # its builder also began long ago, but still writes
    (folder / "notes").make_folder()  # not a build of raypp
    artifact = build_artifact(store)
    assert [build.name for build in builds(store)] == sorted([slow.name, artifact.location.name, "notes"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flipped bit", "missing"])
def test_damaged_part_is_reported_once_rebuilt_and_removed(
    store: Store, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    broken = build_artifact(store)
    part = local(broken, broken.parts[1])
    damage(part)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, logger="raypp"):
        assert store.find(KIND, KEY) is None
        assert store.find(KIND, KEY) is None
    assert [str(part) in record.message for record in caplog.records] == [True]

    rebuilt = build_artifact(store)
    found = store.find(KIND, KEY)
    assert found == rebuilt
    assert found.read_table() == table_of([0, 1, 2, 3, 4])
    assert builds(store) == [rebuilt.location]


@pytest.mark.parametrize(
    "content", ["", '{"kind": "feat', "[]", "{}", '{"kind": "x", "files": [{"name": 1}]}', "\udcff"]
)
def test_unreadable_manifest_is_damage(store: Store, content: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = build_artifact(store)
    manifest = local(broken, "manifest.json")
    manifest.write_bytes(content.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING, logger="raypp"):
        assert store.find(KIND, KEY) is None
    assert [str(manifest) in record.message for record in caplog.records] == [True]
    rebuilt = build_artifact(store)
    assert store.find(KIND, KEY) == rebuilt
    assert builds(store) == [rebuilt.location]


def test_intact_copy_is_found_next_to_a_damaged_one(store: Store) -> None:
    first, second = build_artifact(store), build_artifact(store)
    assert store.find(KIND, KEY) == first
    local(first, first.parts[0]).unlink()
    assert store.find(KIND, KEY) == second


def test_checksums_are_verified_once_a_process_and_sizes_always(store: Store) -> None:
    artifact = build_artifact(store)
    part = local(artifact, artifact.parts[0])
    whole = part.read_bytes()
    assert store.find(KIND, KEY) == artifact
    flip(part)
    assert store.find(KIND, KEY) == artifact  # it was verified before, so it is not read again
    store_module.verified_builds.clear()
    assert store.find(KIND, KEY) is None
    store_module.verified_builds.clear()
    part.write_bytes(whole)
    assert store.find(KIND, KEY) == artifact
    part.write_bytes(whole[:-1])
    assert store.find(KIND, KEY) is None


def _build_with_barrier(folder: str, barrier: object) -> None:
    store = Store(Location.of(folder))
    with store.build(KIND, KEY, {"made": "at the same time"}) as build:
        files = [write_part(build.location, table_of([1]))]
        barrier.wait()  # type: ignore[attr-defined]
        files.append(write_part(build.location, table_of([0])))
        build.finish(2, {}, files)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_concurrent_builders_of_one_key_are_harmless(store: Store, kind: str) -> None:
    processes = multiprocessing.get_context("fork")
    start, meet = (threading.Thread, threading.Barrier) if kind == "threads" else (processes.Process, processes.Barrier)
    barrier = meet(4)
    workers: list[Any] = [start(target=_build_with_barrier, args=(store.location.path, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(builds(store)) == 4
    found = store.find(KIND, KEY)
    assert found is not None
    assert found.location == builds(store)[0]
    assert found.read_table() == table_of([0, 1])


def test_readers_see_nothing_or_everything_while_builders_work(store: Store) -> None:
    finished = threading.Event()
    seen: list[pa.Table] = []

    def read() -> None:
        while not finished.is_set():
            if (artifact := store.find(KIND, KEY)) is not None:
                seen.append(artifact.read_table())

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        built = 0
        # On a busy machine the reader may start late, so builders continue until it has seen something.
        while built < 20 or not (seen or reader.done()):
            build_artifact(store, ([2, 3], [0, 1]))
            built += 1
        finished.set()
        reader.result()
    assert all(table == table_of([0, 1, 2, 3]) for table in seen)


def test_folder_that_nodes_do_not_share_is_refused(store: Store) -> None:
    elsewhere = StoredFile("part-on-another-node.parquet", 10, "0" * 64)
    with (
        pytest.raises(ConfigError, match=r"cluster\.store: .*not the same folder.*part-on-another-node"),
        store.build(KIND, KEY, {}) as build,
    ):
        build.finish(1, {}, [elsewhere])
    assert store.find(KIND, KEY) is None
    assert builds(store) == []


def test_refused_storage_is_a_config_error_that_names_setting_and_place(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the store should be")
    store = Store(Location.of(blocked))
    with pytest.raises(ConfigError, match=rf"cluster\.store: {blocked}"), store.build(KIND, KEY, {}):
        pass
    with pytest.raises(ConfigError, match=rf"cluster\.store: {tmp_path}/gone"):
        write_part(Location.of(tmp_path / "gone"), table_of([0]))


def test_disk_that_fails_at_the_manifest_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Location, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Location, "write_json", full)
    with pytest.raises(StorageFailed, match=r"the store fails at .*No space left on device"):
        build_artifact(store)
    monkeypatch.undo()
    assert builds(store) == []


def test_build_left_without_finish_is_a_bug(store: Store) -> None:
    with pytest.raises(AssertionError, match="finish"), store.build(KIND, KEY, {}):
        pass
    assert builds(store) == []
