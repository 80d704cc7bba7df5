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
    ("cpus", "placement", "workers", "each"),
    [
        ((4, 2), "pack", 2, 2),
        ((4, 4), "pack", 2, 4),
        ((8,), "spread", 3, 2),
        ((2, 2, 2), "pack", 2, 2),
        ((1,), "pack", 4, 1),
        ((4, 4), "strict_pack", 2, 2),
        ((8, 2), "strict_spread", 2, 2),
    ],
)
def test_automatic_cpus_are_the_most_that_every_worker_can_have_on_one_node(
    cpus: tuple[int, ...], placement: str, workers: int, each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*cpus))
    assert session(workers=workers, placement=placement).cpus_per_worker() == each


@pytest.mark.parametrize(
    ("placement", "groups"), [("pack", 4), ("spread", 4), ("strict_pack", 3), ("strict_spread", 3)]
)
def test_groups_of_workers_are_laid_as_they_are_to_be(
    placement: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers each: on nodes with room for 5, 1 and 2."""
    monkeypatch.setattr(ray, "nodes", lambda: nodes(5, 1, 2))
    assert session(cpus_per_worker=1, placement=placement).groups(2) == groups


def test_parts_of_a_gpu_do_not_spread_over_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}])
    assert session(gpus_per_worker=0.4).room() == 4
    assert session(gpus_per_worker=0.5).room() == 4
    assert session(gpus_per_worker=1).room() == 2
    monkeypatch.setattr(ray, "nodes", lambda: nodes(3))
    assert session(cpus_per_worker=0.4).room() == 7, "those of a CPU may"


@pytest.mark.parametrize(
    ("placement", "workers", "where"),
    [
        ("strict_pack", 5, "not for 5 on one node; ask"),
        ("strict_spread", 2, "not for 2 on a node of its own each; ask"),
    ],
)
def test_workers_that_fit_but_not_where_they_are_to_be_are_refused(
    placement: str, workers: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = (4, 4) if placement == "strict_pack" else (8,)
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*cpus))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(ConfigError, match=rf"{where}.*another cluster\.placement"):
        session(workers=workers, placement=placement, cpus_per_worker=1).check_resources()


def test_workers_that_fit_the_total_but_no_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(4, 4, 4, 4))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    session(workers=4, cpus_per_worker=4).check_resources()
    with pytest.raises(ConfigError, match="room for 0 workers with 8 CPU"):
        session(workers=2, cpus_per_worker=8).check_resources()
