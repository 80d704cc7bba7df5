"""What Ray Train says of a group of workers that failed, in raypp's own errors."""

from __future__ import annotations

import pytest
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import PreemptionError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from raypp.cluster.trainer import _explained
from raypp.errors import ConfigError, PlacesTaken, StorageFailed, WorkersLost, WorkersTaken


@pytest.mark.parametrize("preempted", [False, True])
def test_workers_that_died_with_a_node_that_was_taken_away_are_nobodys_failure(preempted: bool) -> None:
    death = RayActorError(error_msg="the node died", preempted=preempted)
    failed = WorkerGroupError("rank 1", {1: WorkerHealthCheckFailedError("the worker is dead", death)})
    explained = _explained(failed)
    assert type(explained) is (WorkersTaken if preempted else WorkersLost)
    assert "the node died" in str(explained)


def test_a_group_whose_save_outlasted_the_warning_was_taken_too() -> None:
    assert type(_explained(PreemptionError(PreemptionInfo(None, {"node": [1]}), drain_timed_out=True))) is WorkersTaken


def test_the_users_error_is_handed_on_as_it_is() -> None:
    refused = ConfigError("student.model: there is none")
    assert _explained(WorkerGroupError("rank 0", {0: refused})) is refused


def test_storage_that_fails_for_good_is_said_as_it_is_but_not_where_a_node_was_taken_away() -> None:
    failed = StorageFailed("the disk is full")
    assert _explained(WorkerGroupError("rank 0", {0: failed})) is failed
    death = RayActorError(error_msg="the node died", preempted=True)
    assert type(_explained(WorkerGroupError("both", {0: failed, 1: death}))) is WorkersTaken


def test_of_workers_that_failed_the_one_that_died_is_said() -> None:
    died = WorkerHealthCheckFailedError("the worker is dead", RayActorError(error_msg="killed: out of memory"))
    disconnected = RuntimeError("connection closed by peer")
    explained = _explained(WorkerGroupError("both", {0: disconnected, 1: died}))
    assert type(explained) is WorkersLost
    assert "killed: out of memory" in str(explained)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no space left on device"), StorageFailed),
        (ConnectionResetError("by peer"), WorkersLost),
        (GetTimeoutError("no answer"), WorkersLost),
    ],
)
def test_ray_train_that_cannot_write_its_own_files_is_storage_that_fails(
    error: Exception, expected: type[Exception]
) -> None:
    for failed in (ControllerError(error), WorkerGroupError("rank 0", {0: error})):
        assert type(_explained(failed)) is expected
        assert str(error) in str(_explained(failed))


def test_a_group_that_did_not_get_its_places_has_lost_no_worker() -> None:
    assert type(_explained(ControllerError(WorkerGroupStartupTimeoutError(2)))) is PlacesTaken
