"""Checkpoints are exact, complete or absent, and bounded in number."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from raypp import storage
from raypp.errors import FailsAgain, RunFailed, StorageFailed
from raypp.storage import Location
from raypp.training.checkpoint import Checkpoints, capture, restore


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    nn.init.zeros_(model[0].bias).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    train(model, optimizer, 0, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, steps: int) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        torch.manual_seed(1000 + step)
        model(torch.randn(8, 5)).square().sum().backward()
        optimizer.step()


def test_resuming_from_a_checkpoint_is_bitwise_exact(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1, steps=4)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=2)
    checkpoints.write(capture(4, model, optimizer, {"note": [1, 2]}))
    train(model, optimizer, 4, 3)
    checkpoints.wait()

    other, other_optimizer = trained(seed=1, steps=0)
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.state["note"]) == (4, [1, 2])
    restore(latest, other, other_optimizer)
    train(other, other_optimizer, 4, 3)
    for expected, got in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_extra_modules_are_resumed_and_can_be_left_out(tmp_path: Path) -> None:
    def both(seed: int, steps: int) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model, extra_modules = nn.Linear(5, 3), nn.ModuleDict({"1_2": nn.Linear(3, 4)})
        optimizer = torch.optim.AdamW([*model.parameters(), *extra_modules.parameters()], lr=0.1, fused=True)
        train(nn.Sequential(model, extra_modules["1_2"]), optimizer, 0, steps)
        return model, extra_modules, optimizer

    model, extra_modules, optimizer = both(seed=1, steps=4)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=2)
    checkpoints.write(capture(4, model, optimizer, {}, extra_modules=extra_modules))
    checkpoints.wait()
    latest = checkpoints.latest()
    assert latest is not None
    alone = nn.Linear(5, 3)
    restore(latest, alone)
    assert torch.equal(alone.weight, model.weight)

    train(nn.Sequential(model, extra_modules["1_2"]), optimizer, 4, 3)
    other, other_extra, other_optimizer = both(seed=2, steps=0)
    restore(latest, other, other_optimizer, extra_modules=other_extra)
    train(nn.Sequential(other, other_extra["1_2"]), other_optimizer, 4, 3)
    for module, again in ((model, other), (extra_modules, other_extra)):
        for expected, got in zip(module.parameters(), again.parameters(), strict=True):
            assert torch.equal(expected, got)
    with pytest.raises(FailsAgain, match="belongs to another model"):
        restore(latest, other, extra_modules=nn.ModuleDict())


def test_a_snapshot_does_not_change_with_the_model(tmp_path: Path) -> None:
    model, optimizer = trained(seed=2, steps=1)
    before = model[0].weight.detach().clone()
    snapshot = capture(1, model, optimizer, {})
    train(model, optimizer, 1, 1)
    assert torch.equal(snapshot.parameters["0.weight"], before)
    assert "0.bias" not in snapshot.parameters, "what is frozen comes from the pretrained model"


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(seed=3, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=2)
    for step in (10, 20, 30, 40, 50):
        checkpoints.write(capture(step, model, optimizer, {}), best_step=20 if step >= 20 else None)
        checkpoints.wait()
    assert checkpoints.steps() == [20, 40, 50]


def test_writing_never_waits_for_slow_storage_and_skips_replaced_checkpoints_but_not_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained(seed=3, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=5)
    answers = threading.Event()
    try:
        for step in (1, 2, 3, 4, 5):  # all calls return, although nothing can be written yet
            best_step = 3 if step >= 3 else None
            checkpoints.write(capture(step, model, optimizer, {}), best_step, before=lambda: answers.wait() and None)
        assert checkpoints.steps() == []
    finally:
        answers.set()
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 5]
    assert len(caplog.records) == 1
    assert "some checkpoints are skipped" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained(seed=4, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=3)
    for step in (1, 2):
        checkpoints.write(capture(step, model, optimizer, {}))
    checkpoints.wait()
    file = tmp_path / "step-00000002" / name
    file.write_bytes(file.read_bytes()[:-3])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 1
    assert "step-00000002 is damaged" in caplog.text


def test_a_checkpoint_whose_best_is_damaged_is_skipped_if_the_best_is_delivered(tmp_path: Path) -> None:
    model, optimizer = trained(seed=4, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=3)
    for step, best in ((1, None), (2, {"step": 2, "value": 0.9}), (3, {"step": 2, "value": 0.9})):
        checkpoints.write(capture(step, model, optimizer, {"progress": {"best": best}}), best_step=2)
    checkpoints.wait()
    for with_best in (False, True):
        latest = checkpoints.latest(with_best=with_best)
        assert latest is not None
        assert latest.step == 3
    file = tmp_path / "step-00000002" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for with_best, expected in ((False, 3), (True, 1)):
        latest = checkpoints.latest(with_best=with_best)
        assert latest is not None
        assert latest.step == expected


@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_of_the_previous_checkpoint_is_kept_when_the_best_changes(tmp_path: Path, resumed: bool) -> None:
    """If the newest checkpoint is damaged, a run resumes from the previous one, whose best is an older one."""
    model, optimizer = trained(seed=4, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=2)
    for step, best in ((10, 10), (20, 10), (30, 30), (40, 30)):
        if resumed:
            checkpoints = Checkpoints(Location.of(tmp_path), keep=2)
        state = {"progress": {"best": {"step": best, "value": 0.9}}}
        checkpoints.write(capture(step, model, optimizer, state), best_step=best)
        checkpoints.wait()
        if step == 30:
            assert checkpoints.steps() == [10, 20, 30]
    assert checkpoints.steps() == [30, 40]
    file = tmp_path / "step-00000040" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    latest = checkpoints.latest(with_best=True)
    assert latest is not None
    assert latest.step == 30


def test_a_checkpoint_that_cannot_be_read_is_not_treated_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", ())
    model, optimizer = trained(seed=4, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=3)
    checkpoints.write(capture(1, model, optimizer, {}))
    checkpoints.wait()
    file = tmp_path / "step-00000001" / "model.safetensors"
    file.unlink()
    file.mkdir()  # so that reading it fails, as if a network were down
    with pytest.raises(StorageFailed, match="step-00000001 cannot be read"):
        checkpoints.latest()


def test_a_checkpoint_without_its_manifest_does_not_exist(tmp_path: Path) -> None:
    model, optimizer = trained(seed=5, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=3)
    checkpoints.write(capture(1, model, optimizer, {}))
    checkpoints.wait()
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    assert checkpoints.latest() is None


def test_an_unfinished_checkpoint_does_not_count_among_the_kept_ones(tmp_path: Path) -> None:
    model, optimizer = trained(seed=5, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path), keep=2)
    for step in (16, 18):
        checkpoints.write(capture(step, model, optimizer, {}))
    checkpoints.wait()
    (tmp_path / "step-00000018" / "manifest.json").unlink()  # its writer was killed
    resumed = Checkpoints(Location.of(tmp_path), keep=2)
    resumed.write(capture(20, model, optimizer, {}))
    resumed.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000016", "step-00000020"]


@pytest.mark.parametrize(
    ("error", "written"), [(KeyboardInterrupt, []), (StorageFailed, []), (RunFailed, [4]), (None, [4])]
)
def test_a_run_that_ends_waits_for_its_checkpoint_unless_it_ends_at_once_or_its_storage_fails(
    tmp_path: Path, error: type[BaseException] | None, written: list[int]
) -> None:
    model, optimizer = trained(seed=5, steps=1)
    answers, ends = threading.Event(), nullcontext() if error is None else pytest.raises(error)
    with ends, Checkpoints(Location.of(tmp_path), keep=2) as checkpoints:
        checkpoints.write(capture(4, model, optimizer, {}), before=lambda: answers.wait() and None)
        if written:
            answers.set()
        if error is not None:
            raise error
        checkpoints.wait()
    answers.set()
    checkpoints.wait()  # until the thread has ended
    assert checkpoints.steps() == written
    assert written or not list(tmp_path.iterdir()), "nothing was begun after the end"


def test_checkpoints_queued_after_a_failed_one_are_dropped(tmp_path: Path) -> None:
    model, optimizer = trained(seed=7, steps=1)
    checkpoints = Checkpoints(Location.of(tmp_path / "runs"), keep=2)
    answers = threading.Event()

    def fails() -> None:
        answers.wait()
        raise OSError("no such share")

    checkpoints.write(capture(1, model, optimizer, {}), before=fails)
    checkpoints.write(capture(2, model, optimizer, {}))
    answers.set()
    with pytest.raises(StorageFailed, match="no such share"):
        checkpoints.wait()
    assert not (tmp_path / "runs").exists()


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(seed=6, steps=1)
    with pytest.raises(FailsAgain, match="belongs to another model"):
        restore(capture(1, model, optimizer, {}), nn.Linear(5, 7))


def test_a_checkpoint_belongs_to_its_frozen_parameters(tmp_path: Path) -> None:
    """They are not in it. Those of a teacher that was trained again are others, and nothing else would tell."""
    model, optimizer = trained(seed=6, steps=1)
    taken = capture(1, model, optimizer, {"progress": 1})
    restore(taken, copy.deepcopy(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias[0] += 1e-6
    restore(replace(taken, state={"progress": 1}), copy.deepcopy(other))  # of an older version of raypp
    with pytest.raises(FailsAgain, match="the checkpoint of step 1 belongs to a model with other frozen parameters"):
        restore(taken, other)


def test_failing_storage_is_reported_when_waiting_for_the_writing(tmp_path: Path) -> None:
    model, optimizer = trained(seed=7, steps=1)
    (tmp_path / "file").write_text("not a folder")
    checkpoints = Checkpoints(Location.of(tmp_path / "file"), keep=1)
    checkpoints.write(capture(1, model, optimizer, {}))
    with pytest.raises(StorageFailed, match="cannot be written"):
        checkpoints.wait()
