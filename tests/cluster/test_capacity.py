"""How many workers fit on nodes, counted by hand."""

from __future__ import annotations

import pytest

from raypp.cluster.capacity import check_capacity, check_preparation, even_cpus, groups_on, workers_on
from raypp.config import ClusterSettings
from raypp.errors import ConfigError


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
    cpus: tuple[int, ...], placement: str, workers: int, each: int
) -> None:
    assert even_cpus(cpus, workers, placement) == each


@pytest.mark.parametrize(
    ("placement", "groups"), [("pack", 4), ("spread", 4), ("strict_pack", 3), ("strict_spread", 3)]
)
def test_groups_of_two_workers_are_laid_as_they_are_to_be(placement: str, groups: int) -> None:
    assert groups_on([5, 1, 2], 2, placement) == groups


def test_parts_of_a_gpu_do_not_spread_over_two_but_those_of_a_cpu_may() -> None:
    node = {"CPU": 8.0, "GPU": 2.0}
    assert [workers_on(node, {"CPU": 1.0, "GPU": part}) for part in (0.4, 0.5, 1.0)] == [4, 4, 2]
    assert workers_on({"CPU": 3.0}, {"CPU": 0.4}) == 7
    assert workers_on({"CPU": 3.0}, {"CPU": 1.0, "GPU": 1.0}) == 0


def check(cpus: tuple[int, ...], workers: int, each: float, placement: str = "pack") -> None:
    settings = ClusterSettings.model_validate({"workers": workers, "placement": placement})
    check_capacity(settings, {"CPU": each}, [{"CPU": float(count)} for count in cpus])


@pytest.mark.parametrize(
    ("placement", "cpus", "workers", "where"),
    [
        ("strict_pack", (4, 4), 5, "not for 5 on one node; ask"),
        ("strict_spread", (8,), 2, "not for 2 on a node of its own each; ask"),
    ],
)
def test_workers_that_fit_but_not_where_they_are_to_be_are_refused(
    placement: str, cpus: tuple[int, ...], workers: int, where: str
) -> None:
    check(cpus, workers, 1)
    with pytest.raises(ConfigError, match=rf"{where}.*another cluster\.placement"):
        check(cpus, workers, 1, placement)


def test_workers_that_fit_the_total_but_no_node_are_refused() -> None:
    check((4, 4, 4, 4), 4, 4)
    with pytest.raises(ConfigError, match="capacity for 0 workers with 8 CPU"):
        check((4, 4, 4, 4), 2, 8)
    with pytest.raises(ConfigError, match="need 24 CPU, but the cluster has 16"):
        check((4, 4, 4, 4), 3, 8)


def test_a_cluster_without_a_cpu_cannot_prepare_and_is_told_so() -> None:
    check_preparation([{"memory": 1e9}, {"CPU": 1.0}])
    for nodes in ([], [{"memory": 1e9}, {"CPU": 0.0, "GPU": 1.0}]):
        with pytest.raises(ConfigError, match=r"none of them has a CPU.*cluster\.autoscaling=true"):
            check_preparation(nodes)


def test_teacher_logits_on_gpus_that_no_node_has_are_refused() -> None:
    check_preparation([{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}], gpus_per_worker=0.5)
    for nodes in ([{"CPU": 4.0}], [{"CPU": 4.0}, {"GPU": 1.0}]):
        with pytest.raises(ConfigError, match=r"cluster\.gpus_per_worker: with 0\.5.*set it to 0.*autoscaling=true"):
            check_preparation(nodes, gpus_per_worker=0.5)
