"""A run's checkpoints: complete or absent, verified before use, bounded in number, written in the background.

A checkpoint is a folder `step-00000123` of safetensors and JSON; its manifest (sizes, checksums) is written last.
What is not saved can be computed again: learning rates, thresholds, masks, batches and dropout are functions of the
step and the seed, and frozen parameters come from the pretrained model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from raypp.errors import RunFailed, StorageFailed
from raypp.storage import Location

logger = logging.getLogger("raypp")

MANIFEST = "manifest.json"
BESIDE = "beside/"  # begins the names of what is learned beside the model


@dataclass
class Checkpoint:
    """What a run needs to go on after `step` optimizer steps."""

    step: int
    parameters: dict[str, Tensor]
    """Trainable parameters and persistent buffers by name, scores among them."""
    moments: dict[str, Tensor]
    """AdamW's state: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
    state: dict[str, Any] = field(default_factory=dict)
    """JSON: the run's length and progress, the gradient scaler's state."""


def capture(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    *,
    beside: nn.Module | None = None,
) -> Checkpoint:
    """A snapshot in host memory: training goes on while it is written.

    Args:
        beside: what else the optimizer moves, to go on with; nobody needs it who only reads the model.
    """
    parameters = {name: _copy(value) for name, value in _changing(model, beside).items()}
    moments: dict[str, Tensor] = {}
    if optimizer is not None:
        names: dict[Tensor, str] = {parameter: name for name, parameter in _parameters(model, beside).items()}
        for parameter, entries in optimizer.state.items():
            moments |= {f"{key}/{names[parameter]}": _copy(value) for key, value in entries.items()}
    return Checkpoint(step, parameters, moments, dict(state))


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    beside: nn.Module | None = None,
) -> None:
    """Puts a snapshot back, bit for bit; without `beside`, the model alone."""
    targets = _changing(model, beside)
    saved = {n: v for n, v in checkpoint.parameters.items() if beside is not None or not n.startswith(BESIDE)}
    if targets.keys() != saved.keys():
        different = sorted(targets.keys() ^ saved.keys())
        raise RunFailed(f"the checkpoint of step {checkpoint.step} belongs to another model: {different[:3]} differ")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])
    if optimizer is None:
        return
    parameters = _parameters(model, beside)
    for key, value in checkpoint.moments.items():
        entry, _, name = key.partition("/")
        parameter = parameters[name]
        # The fused optimizer keeps its step counts beside the parameters.
        optimizer.state[parameter][entry] = value.to(parameter.device).clone()


def _parameters(model: nn.Module, beside: nn.Module | None) -> dict[str, nn.Parameter]:
    extra = {} if beside is None else {BESIDE + name: parameter for name, parameter in beside.named_parameters()}
    return dict(model.named_parameters()) | extra


def _changing(model: nn.Module, beside: nn.Module | None) -> dict[str, Tensor]:
    changing: dict[str, Tensor] = {n: p.detach() for n, p in _parameters(model, beside).items() if p.requires_grad}
    persistent = model.state_dict().keys()
    return changing | {n: b for n, b in model.named_buffers() if n in persistent}


def _nothing() -> None:
    """Nothing is to be done first."""


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


@dataclass(frozen=True)
class _Order:
    """A checkpoint to write."""

    checkpoint: Checkpoint
    best_step: int | None
    before: Callable[[], None]


class _Closed(Exception):
    """Nothing more is to be written."""


class Checkpoints:
    """The checkpoints in one folder of a run. Use as a context manager where checkpoints are written: no writing
    outlasts it."""

    def __init__(self, location: Location, keep: int) -> None:
        self.location = location
        self.keep = keep
        self._lock = threading.Lock()
        self._orders: list[_Order] = []
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._skipped = False
        self._best_steps: dict[int, int | None] = {}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what is being written, unless the storage has failed or the process is to end at once: then what
        is not written yet is given up, and its thread leaves before the next file."""
        try:
            if kind is not None and issubclass(kind, Exception) and not issubclass(kind, StorageFailed | OSError):
                self.wait()
        except StorageFailed as failure:  # what ends the run is what must be said
            logger.warning("%s", failure)
        finally:
            with self._lock:
                self._closed = True
                self._orders.clear()

    def write(
        self, checkpoint: Checkpoint, best_step: int | None = None, before: Callable[[], None] = _nothing
    ) -> None:
        """Writes a checkpoint in the background; never waits.

        If writing takes longer than training to the next checkpoint, the new one replaces the one that is queued, so
        at most three are in memory: the one being written, the newest, and the best.

        Args:
            best_step: step of the checkpoint to keep in addition to the newest ones.
            before: called first, in the background too.

        Raises:
            StorageFailed: an earlier one could not be written.
        """
        self._check()
        order = _Order(checkpoint, best_step, before)
        with self._lock:
            if self._thread is None:
                # A daemon: a process that ends at once does not wait for storage that hangs.
                self._thread = threading.Thread(target=self._write_all, args=[order], name="checkpoint", daemon=True)
                self._thread.start()
                return
            kept = [queued for queued in self._orders if queued.checkpoint.step == best_step]
            if len(kept) < len(self._orders) and not self._skipped:
                self._skipped = True
                logger.warning("writing to %s takes longer than checkpoints come; some are skipped", self.location)
            self._orders = [*kept, order]

    def wait(self) -> None:
        """Returns when all that was queued is written; raises StorageFailed if it could not be."""
        while (thread := self._thread) is not None:
            thread.join()
        self._check()

    def _check(self) -> None:
        with self._lock:
            failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            raise StorageFailed(f"a checkpoint cannot be written to {self.location}: {failure}") from failure
        if failure is not None:
            raise failure

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; damage is found when one is read."""
        names = [child for child in self.location.children() if child.name.startswith("step-")]
        return [int(child.name.removeprefix("step-")) for child in names if (child / MANIFEST).is_file()]

    def read(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step, or None (and a warning that names the file) if it is damaged."""
        folder = self.location / f"step-{step:08d}"
        try:
            manifest = (folder / MANIFEST).read_json()
            contents = {name: (folder / name).read_bytes() for name in manifest["files"]}
            for name, content in contents.items():
                if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
                    raise ValueError(f"{name} is not what was written")
            state = json.loads(contents["state.json"])
            return Checkpoint(step, load(contents["model.safetensors"]), load(contents["optimizer.safetensors"]), state)
        except (FileNotFoundError, ValueError, KeyError) as error:
            logger.warning("the checkpoint %s is damaged and not used: %s", folder, error)
            return None
        except OSError as error:  # no damage: taken for it, the run would go back and write over what is whole
            raise StorageFailed(f"the checkpoint {folder} cannot be read: {error}") from error

    def latest(self, *, with_best: bool = False) -> Checkpoint | None:
        """The newest checkpoint that is whole.

        Args:
            with_best: pass over one whose best evaluation's checkpoint is damaged: the run could not end well.
        """
        for step in reversed(self.steps()):
            checkpoint = self.read(step)
            if checkpoint is None:
                continue
            best = checkpoint.state["progress"]["best"] if with_best else None
            if best is None or best["step"] == step or self.read(int(best["step"])) is not None:
                return checkpoint
        return None

    def _write_all(self, order: _Order) -> None:
        """The thread: writes this checkpoint and those queued meanwhile. After one that fails it writes no more; the
        next call of `write` or `wait` raises the error."""
        while True:
            failure: BaseException | None = None
            try:
                order.before()
                self._write(order.checkpoint, order.best_step)
            except _Closed:
                pass
            except BaseException as error:
                failure = error
            with self._lock:
                if failure is not None:
                    self._failure = failure
                    self._orders.clear()
                if not self._orders:
                    self._thread = None
                    return
                order = self._orders.pop(0)

    def _write(self, checkpoint: Checkpoint, best_step: int | None) -> None:
        self._stop_if_closed()
        folder = self.location / f"step-{checkpoint.step:08d}"
        folder.delete()
        folder.make_folder()
        contents = {
            "model.safetensors": save(checkpoint.parameters),
            "optimizer.safetensors": save(checkpoint.moments),
            "state.json": json.dumps(checkpoint.state).encode(),
        }
        files = {}
        for name, content in contents.items():
            self._stop_if_closed()
            (folder / name).write_bytes(content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self._stop_if_closed()
        (folder / MANIFEST).write_json({"step": checkpoint.step, "files": files})
        self._stop_if_closed()
        self._delete_old(checkpoint.step, best_step)

    def _stop_if_closed(self) -> None:
        """Before each change: another process may have taken over the run once this one has let go of it."""
        if self._closed:
            raise _Closed

    def _delete_old(self, newest_step: int, best_step: int | None) -> None:
        """Keeps the newest few, and the best of each: a run that goes back to an older one delivers that one's best.
        What lies ahead of the newest was left by a run that was cut back."""
        self._best_steps[newest_step] = best_step
        # One that was never finished (its writer was killed) is no fallback, and would take the place of one.
        kept: set[int | None] = set([step for step in self.steps() if step <= newest_step][-self.keep :])
        kept |= {self._best_step(step) for step in kept if step is not None}
        for child in self.location.children():
            if child.name.startswith("step-") and int(child.name.removeprefix("step-")) not in kept:
                child.delete()

    def _best_step(self, step: int) -> int | None:
        """Of a checkpoint that is kept; one that this process has not written is asked for it."""
        if step not in self._best_steps:
            try:
                best = (self.location / f"step-{step:08d}" / "state.json").read_json()["progress"]["best"]
                self._best_steps[step] = best and int(best["step"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: `latest` passes it over
                self._best_steps[step] = None
        return self._best_steps[step]
