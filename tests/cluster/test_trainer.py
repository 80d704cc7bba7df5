"""What Ray Train says of a group of workers that failed, in raypp's own errors; and what a run makes of its groups."""

from __future__ import annotations

import math
import runpy
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.train import PreemptionError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from raypp import storage
from raypp.cluster import deadlines, trainer
from raypp.cluster.outcome import Failed, Finished, InterruptedAt, Outcome
from raypp.cluster.trainer import CONTROLLER_LOSSES, Supervision, _explained, run_job
from raypp.config import ClusterSettings
from raypp.errors import (
    ConfigError,
    FailsAgain,
    Interrupted,
    PlacementLost,
    RunFailed,
    StorageFailed,
    WorkersLost,
    WorkersPreempted,
)
from raypp.events import Message, WorkersPlaced, ignore
from raypp.interrupts import STOPPING
from raypp.storage import Location


@pytest.mark.parametrize("preempted", [False, True])
def test_workers_that_died_with_a_node_that_was_taken_away_are_nobodys_failure(preempted: bool) -> None:
    death = RayActorError(error_msg="the node died", preempted=preempted)
    failed = WorkerGroupError("rank 1", {1: WorkerHealthCheckFailedError("the worker is dead", death)})
    explained = _explained(failed)
    assert type(explained) is (WorkersPreempted if preempted else WorkersLost)
    assert "the node died" in str(explained)


def test_a_group_whose_save_outlasted_the_warning_was_taken_too() -> None:
    assert (
        type(_explained(PreemptionError(PreemptionInfo(None, {"node": [1]}), drain_timed_out=True))) is WorkersPreempted
    )


def test_the_users_error_is_handed_on_as_it_is() -> None:
    refused = ConfigError("student.model: there is none")
    assert _explained(WorkerGroupError("rank 0", {0: refused})) is refused


def test_storage_that_fails_for_good_is_said_as_it_is_but_not_where_a_node_was_taken_away() -> None:
    failed = StorageFailed("the disk is full")
    assert _explained(WorkerGroupError("rank 0", {0: failed})) is failed
    death = RayActorError(error_msg="the node died", preempted=True)
    assert type(_explained(WorkerGroupError("both", {0: failed, 1: death}))) is WorkersPreempted


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
    assert type(_explained(ControllerError(WorkerGroupStartupTimeoutError(2)))) is PlacementLost


# --- a run's groups, one after the other; what comes of each is made up here, and Ray is not there -----------------


class Groups:
    """A run of two workers whose groups end as they are told to, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
        self.run = Location.of(run)
        self.ends: list[Outcome | Exception | tuple[Outcome, str]] = []
        self.said: list[str] = []
        self.interrupted = False
        self.last_is_interrupted = False
        monkeypatch.setattr(trainer, "_run_group", self._run_group)
        sizes = SimpleNamespace(next_size=lambda is_interrupted, say: 0 if is_interrupted() else 2)
        monkeypatch.setattr(trainer, "GroupSizes", lambda *_: sizes)

    def _run_group(self, *_: Any) -> tuple[Outcome, str | None]:
        end = self.ends.pop(0)
        self.interrupted = self.last_is_interrupted and not self.ends
        match end:
            case Exception() as error:
                raise error
            case (outcome, resizes):
                return outcome, resizes
            case outcome:
                return outcome, None

    def __call__(self, *ends: Outcome | Exception | tuple[Outcome, str], max_failures: int = 1) -> dict[str, Any]:
        """The run's result; all groups that are given an end must have had it."""
        self.ends[:] = ends
        cluster = ClusterSettings(workers=2, max_failures=max_failures)
        job = SimpleNamespace(experiment=SimpleNamespace(cluster=cluster), run=self.run, phase="training")
        supervision = Supervision(self._on_event, is_interrupted=lambda: self.interrupted)
        session = SimpleNamespace(worker_resources=lambda: {"CPU": 1.0})
        try:
            return run_job(cast(Any, job), cast(Any, session), supervision)
        finally:
            assert not self.ends, "groups that were not started"

    def _on_event(self, event: Any) -> None:
        assert isinstance(event, Message)
        self.said.append(event.text)


DONE = Finished({"metrics": {}})


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Groups:
    return Groups(monkeypatch, tmp_path)


def test_workers_may_be_lost_as_often_as_the_settings_say_and_why_is_said(groups: Groups) -> None:
    lost = [WorkersLost(f"Died: the worker\n  pid: 1\nthe reason {number}") for number in range(3)]
    assert groups(*lost[:2], DONE, max_failures=2) == DONE.result
    assert groups.said == [
        f"training: a worker was lost (the reason {number}); the run continues from its last checkpoint"
        for number in range(2)
    ]
    with pytest.raises(WorkersLost) as raised:
        groups(*lost, max_failures=2)
    assert raised.value is lost[2]
    with pytest.raises(WorkersLost):
        groups(lost[0], max_failures=0)


def test_a_long_reason_is_cut(groups: Groups) -> None:
    groups(WorkersLost("x" * 1000), DONE)
    assert groups.said == [f"training: a worker was lost ({'x' * 200}); the run continues from its last checkpoint"]


@pytest.mark.parametrize("nobodys", [WorkersPreempted, PlacementLost])
def test_nodes_and_room_that_are_taken_do_not_count(groups: Groups, nobodys: type[WorkersLost]) -> None:
    ends = [nobodys("the node") for _ in range(5)]
    assert groups(*ends, DONE, max_failures=0) == DONE.result
    assert len(groups.said) == 5
    if nobodys is PlacementLost:
        assert set(groups.said) == {"training: another command has taken the resources"}


def test_the_controller_may_be_lost_twice(groups: Groups) -> None:
    losses = [RayActorError(error_msg="killed")] * CONTROLLER_LOSSES
    assert groups(*losses, DONE, max_failures=0) == DONE.result
    with pytest.raises(RunFailed, match="controller was lost 3 times: killed"):
        groups(*losses, RayActorError(error_msg="killed"), max_failures=9)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (StorageFailed("the disk is full"), StorageFailed),
        (ConfigError("student.model: there is none"), ConfigError),
        (Failed(FailsAgain("the loss is not finite")), FailsAgain),
        (Failed(RunFailed("the best checkpoint is damaged")), RunFailed),
    ],
)
def test_what_would_fail_alike_is_not_tried_again(
    groups: Groups, end: Exception | Failed, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        groups(end, max_failures=9)
    assert type(raised.value) is error
    assert str(raised.value) == str(end.error if isinstance(end, Failed) else end)


def test_a_group_that_left_is_followed_by_another_unless_the_run_is_interrupted(groups: Groups) -> None:
    assert (
        groups(InterruptedAt(3), (InterruptedAt(5), "there are resources for more workers"), DONE, max_failures=0)
        == DONE.result
    )
    assert groups.said == [
        "training: a node is preempted, or cannot reach the command; step 3 is saved and the run continues",
        "training: there are resources for more workers; step 5 is saved",
    ]
    groups.last_is_interrupted = True
    with pytest.raises(Interrupted) as raised:
        groups(InterruptedAt(3), InterruptedAt(7))
    assert raised.value.step == 7
    groups.interrupted = False
    assert groups(DONE) == DONE.result, "it was too late"


def test_a_run_that_is_interrupted_while_it_waits_for_room_says_what_is_saved(groups: Groups) -> None:
    (groups.run / "checkpoints" / "step-00000012").make_folder()
    (groups.run / "checkpoints" / "step-00000012" / "manifest.json").write_json({})
    groups.interrupted = True
    with pytest.raises(Interrupted) as raised:
        groups()
    assert raised.value.step == 12


# --- the end of a group: its channel and Ray Train are made up, the folder is real ----------------------------------


class Ends:
    """A group whose end is recorded: what is asked and closed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path, fit: Callable[[], Any]) -> None:
        self.job = SimpleNamespace(run=Location.of(run), phase="training")
        self.seen: list[str] = []
        self.events = [WorkersPlaced("group")]
        self.sizes = SimpleNamespace(
            size=2, group_trains=lambda: None, wants_another_size=lambda: None, close=self._sizes_close
        )
        channel = SimpleNamespace(
            receive=lambda seconds: [self.events.pop()] if self.events else [],
            interrupt=lambda stopped=False: self.seen.append("interrupt"),
            close=lambda: self.seen.append("channel"),
        )
        monkeypatch.setattr(trainer.Channel, "open", lambda: channel)
        monkeypatch.setattr(trainer, "_trainer", lambda *_: SimpleNamespace(fit=fit))
        monkeypatch.setattr(trainer, "free_group", self.seen.append)
        self.scratch = self.job.run / "ray"
        self.scratch.make_folder()
        self.sizes_fail = False

    def _sizes_close(self) -> None:
        self.seen.append("sizes")
        if self.sizes_fail:
            raise OSError("slots cannot be removed")

    def __call__(self, on_event: Callable[[Any], None] = ignore) -> Any:
        session = SimpleNamespace()
        supervision = Supervision(on_event)
        return trainer._run_group(cast(Any, self.job), cast(Any, session), {}, cast(Any, self.sizes), supervision)


def raises(error: Exception) -> Any:
    raise error


def test_whatever_of_a_groups_end_fails_the_rest_of_it_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends = Ends(monkeypatch, tmp_path, lambda: SimpleNamespace(return_value=DONE))
    assert ends() == (DONE, None)
    assert ends.seen == ["sizes", "channel", "group"]
    assert not ends.scratch.is_folder()
    ends.seen.clear()
    ends.events = [WorkersPlaced("group")]
    ends.scratch.make_folder()
    ends.sizes_fail = True
    with pytest.raises(OSError, match="slots cannot be removed"):
        ends()
    assert ends.seen == ["sizes", "channel", "group"]
    assert not ends.scratch.is_folder()


@pytest.mark.parametrize(
    ("error", "tidied"), [(StorageFailed("the bucket is gone"), False), (WorkersLost("the worker died"), True)]
)
def test_storage_that_fails_is_not_tidied_up_before_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, tidied: bool
) -> None:
    ends = Ends(monkeypatch, tmp_path, lambda: raises(WorkerGroupError("rank 0", {0: error})))
    with pytest.raises(type(error)) as raised:
        ends()
    assert raised.value is error
    assert isinstance(error.__cause__, WorkerGroupError)
    assert ends.scratch.is_folder() is not tidied


def test_storage_that_fails_before_ray_train_starts_is_waited_for_and_then_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ends = Ends(monkeypatch, run, lambda: SimpleNamespace(return_value=DONE))
    shutil.rmtree(run)
    run.symlink_to(run)  # a loop: no folder can be made below it, which is an error that is tried again
    monkeypatch.setattr(storage, "PAUSES_SECONDS", ())
    with pytest.raises(StorageFailed, match=f"{run}/ray cannot be made"):
        ends()
    assert ends.seen == [], "nothing was started"
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (1.0,) * 9)
    threading.Timer(0.3, run.unlink).start()
    assert ends() == (DONE, None)


def test_a_controller_that_fails_while_it_starts_was_not_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raised = RayTaskError("TrainController.__init__", "Traceback\nOSError: no space left", OSError("no space left"))
    ends = Ends(monkeypatch, tmp_path, lambda: raises(ActorDiedError(raised)))
    with pytest.raises(WorkersLost, match="OSError: no space left"):
        ends()
    ends = Ends(monkeypatch, tmp_path, lambda: raises(ActorDiedError()))
    with pytest.raises(RayActorError):
        ends()


def test_workers_save_their_step_though_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = threading.Event()

    def fit() -> Any:
        assert asked.wait(10)
        return SimpleNamespace(return_value=InterruptedAt(4))

    ends = Ends(monkeypatch, tmp_path, fit)

    def display(event: Any) -> None:
        match event:
            case WorkersPlaced():
                raise KeyboardInterrupt
            case Message(text):
                assert text == STOPPING
                assert ends.seen == ["interrupt"], "they know before the user is told"
                asked.set()
                raise BrokenPipeError

    with pytest.raises(KeyboardInterrupt, match="after step 4, which is saved"):
        ends(display)
    assert ends.seen == ["interrupt", "sizes", "channel", "group"]


def test_workers_that_take_long_to_save_their_step_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    told = threading.Event()

    def fit() -> Any:
        assert told.wait(10)
        return SimpleNamespace(return_value=InterruptedAt(4))

    def display(event: Any) -> None:
        if isinstance(event, WorkersPlaced):
            raise KeyboardInterrupt
        said.append(event.text)
        if event.text != STOPPING:
            told.set()

    monkeypatch.setattr(trainer, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(KeyboardInterrupt, match="after step 4, which is saved"):
        Ends(monkeypatch, tmp_path, fit)(display)
    assert said == [
        STOPPING,
        "training: still waits for its workers to save the step; interrupt again to stop at once",
    ]


@pytest.mark.parametrize(("job_has", "seconds"), [(None, math.inf), ("120", 110.0), ("3", 30.0)])
def test_only_a_job_that_ray_kills_has_a_limit(
    job_has: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    if job_has is not None:
        monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", job_has)
    assert runpy.run_path(str(deadlines.__file__))["INTERRUPTED_STOP_SECONDS"] == seconds
