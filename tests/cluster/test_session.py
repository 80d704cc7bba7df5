"""What a session promises of a cluster: who owns a run there, and whether the workers fit on its nodes."""

from __future__ import annotations

from typing import Any

import pyarrow.fs as pafs
import pytest
import ray

from raypp.cluster.session import Session
from raypp.config import ClusterSettings
from raypp.errors import ConfigError
from raypp.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def session(**settings: Any) -> Session:
    return Session(ClusterSettings.model_validate(settings))


def test_a_run_without_a_lock_file_has_one_owner_at_a_time() -> None:
    run = Location(pafs.SubTreeFileSystem("/tmp", pafs.LocalFileSystem()), "bucket/run")
    assert not run.is_local
    first, second = session(), session()
    with first.owning(run):
        with (
            pytest.raises(ConfigError, match=r"another command on this cluster works on .*bucket/run"),
            second.owning(run),
        ):
            pass
        with second.owning(run / "another"):
            pass
    with second.owning(run):
        pass


def nodes(*cpus: int) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]


@pytest.mark.parametrize(
    ("cpus", "workers", "each"), [((4, 2), 2, 2), ((4, 4), 2, 4), ((8,), 3, 2), ((2, 2, 2), 2, 2), ((1,), 4, 1)]
)
def test_automatic_cpus_are_the_most_that_every_worker_can_have_on_one_node(
    cpus: tuple[int, ...], workers: int, each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*cpus))
    assert session(workers=workers).cpus_per_worker() == each


def test_workers_that_fit_the_total_but_no_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(4, 4, 4, 4))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    session(workers=4, cpus_per_worker=4).check_resources()
    with pytest.raises(ConfigError, match="room for 0 workers with 8 CPU"):
        session(workers=2, cpus_per_worker=8).check_resources()
