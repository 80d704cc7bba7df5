"""A run's checkpoints: complete or absent, verified before use, bounded in number, written in the background.

A checkpoint is a folder `step-00000123` of safetensors and JSON files; its manifest (sizes, checksums) is written last.
Everything that is not saved can be computed again: learning rates, thresholds, masks, batches and dropout are functions
of the step and the seed, and frozen parameters come from the model that the run starts from. That may be a teacher,
which is trained again if it is lost, so a checkpoint has a hash of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from raypp.errors import FailsAgain, StorageFailed
from raypp.storage import Location

logger = logging.getLogger("raypp")

MANIFEST = "manifest.json"
FOLDER_PREFIX = "step-"
EXTRA_PREFIX = "beside/"  # prefix, in a checkpoint's files, of the names of the extra modules' parameters


@dataclass
class Checkpoint:
    """Everything that a run needs to continue after `step` optimizer steps."""

    step: int
    parameters: dict[str, Tensor]
    """Trainable parameters (including scores) and persistent buffers, by name."""
    moments: dict[str, Tensor]
    """AdamW's state: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
    state: dict[str, Any] = field(default_factory=dict)
    """JSON: the run's length and progress, the gradient scaler's state, a hash of the frozen parameters."""


def capture(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    *,
    extra_modules: nn.Module | None = None,
) -> Checkpoint:
    """Takes a snapshot in host memory, so that training continues while it is written.

    Args:
        extra_modules: trained together with the model, but not part of it. Only a run that resumes needs them.
    """
    parameters = {name: _copy(value) for name, value in _changing(model, extra_modules).items()}
    moments: dict[str, Tensor] = {}
    if optimizer is not None:
        names: dict[Tensor, str] = {parameter: name for name, parameter in _parameters(model, extra_modules).items()}
        for parameter, entries in optimizer.state.items():
            moments |= {f"{key}/{names[parameter]}": _copy(value) for key, value in entries.items()}
    return Checkpoint(step, parameters, moments, {**state, "frozen": _frozen_digest(model)})


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    extra_modules: nn.Module | None = None,
) -> None:
    """Puts a snapshot back, bit for bit. Without `extra_modules`, only the model is restored.

    Raises:
        FailsAgain: the checkpoint's parameters have other names than the model's, or the model has other frozen
            parameters than at the time of the checkpoint.
    """
    targets = _changing(model, extra_modules)
    saved = checkpoint.parameters
    if extra_modules is None:
        saved = {name: value for name, value in saved.items() if not name.startswith(EXTRA_PREFIX)}
    if targets.keys() != saved.keys():
        different = sorted(targets.keys() ^ saved.keys())
        raise FailsAgain(f"the checkpoint of step {checkpoint.step} belongs to another model: {different[:3]} differ")
    # Checkpoints of older versions of raypp have no hash.
    if checkpoint.state.get("frozen", _frozen_digest(model)) != _frozen_digest(model):
        raise FailsAgain(
            f"the checkpoint of step {checkpoint.step} belongs to a model with other frozen parameters, such as "
            "embeddings: the teacher or the model that the run started from has changed since, or parameters that were "
            "drawn at random are drawn differently on this machine; bring them back, or start over with --fresh"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])
    if optimizer is None:
        return
    parameters = _parameters(model, extra_modules)
    for key, value in checkpoint.moments.items():
        entry, _, name = key.partition("/")
        parameter = parameters[name]
        # The fused optimizer keeps its step counts on the parameters' device.
        optimizer.state[parameter][entry] = value.to(parameter.device).clone()


def _parameters(model: nn.Module, extra_modules: nn.Module | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    if extra_modules is not None:
        parameters |= {EXTRA_PREFIX + name: parameter for name, parameter in extra_modules.named_parameters()}
    return parameters


def _changing(model: nn.Module, extra_modules: nn.Module | None) -> dict[str, Tensor]:
    """The tensors that training changes, by name."""
    parameters = _parameters(model, extra_modules)
    changing: dict[str, Tensor] = {n: p.detach() for n, p in parameters.items() if p.requires_grad}
    persistent = model.state_dict().keys()
    return changing | {n: b for n, b in model.named_buffers() if n in persistent}


_frozen_digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def _frozen_digest(model: nn.Module) -> str:
    """The sha256 of the frozen parameters, which is computed once for each model."""
    if model not in _frozen_digests:
        digest = hashlib.sha256()
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        _frozen_digests[model] = digest.hexdigest()
    return _frozen_digests[model]


def _nothing() -> None:
    """The default of `Checkpoints.write`'s `before`."""


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


@dataclass(frozen=True)
class _WriteRequest:
    """A checkpoint to write."""

    checkpoint: Checkpoint
    best_step: int | None
    before: Callable[[], None]


class _Closed(Exception):
    """The checkpoints are closed, so that nothing may be written any more."""


class Checkpoints:
    """The checkpoints in one folder of a run. To write checkpoints, use it as a context manager: nothing is written
    after it has ended."""

    def __init__(self, location: Location, keep: int) -> None:
        self.location = location
        self.keep = keep
        self._lock = threading.Lock()
        self._requests: list[_WriteRequest] = []
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._skipped = False
        self._best_steps: dict[int, int | None] = {}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error of the run, waits until all checkpoints are written. If the storage has failed or the process
        must end at once, it does not wait: checkpoints that are not written yet are dropped, and the thread stops
        before the next file."""
        try:
            if kind is not None and issubclass(kind, Exception) and not issubclass(kind, StorageFailed | OSError):
                self.wait()
        except StorageFailed as failure:  # the user must see the error that ended the run, and not this one
            logger.warning("%s", failure)
        finally:
            with self._lock:
                self._closed = True
                self._requests.clear()

    def write(
        self, checkpoint: Checkpoint, best_step: int | None = None, before: Callable[[], None] = _nothing
    ) -> None:
        """Writes a checkpoint in the background; never waits.

        If writing takes longer than training to the next checkpoint, the new one replaces the one that is queued. So
        at most three are in memory: the one that is being written, the newest, and the best.

        Args:
            best_step: step of the best checkpoint, which is kept in addition to the newest ones.
            before: called in the background before the checkpoint is written.

        Raises:
            StorageFailed: an earlier checkpoint could not be written.
        """
        self._check()
        request = _WriteRequest(checkpoint, best_step, before)
        with self._lock:
            if self._thread is None:
                # A daemon thread, so that a process that must end at once does not wait for storage that hangs.
                self._thread = threading.Thread(target=self._write_all, args=[request], name="checkpoint", daemon=True)
                self._thread.start()
                return
            kept = [queued for queued in self._requests if queued.checkpoint.step == best_step]
            if len(kept) < len(self._requests) and not self._skipped:
                self._skipped = True
                logger.warning("writing to %s is slower than training; some checkpoints are skipped", self.location)
            self._requests = [*kept, request]

    def wait(self) -> None:
        """Returns when all queued checkpoints are written.

        Raises:
            StorageFailed: one of them could not be written.
        """
        while (thread := self._thread) is not None:
            thread.join()
        self._check()

    def _check(self) -> None:
        """Raises the error of an earlier writing, once."""
        with self._lock:
            failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            raise StorageFailed(f"a checkpoint cannot be written to {self.location}: {failure}") from failure
        if failure is not None:
            raise failure

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. Whether one is damaged is only found when it is read."""
        return _complete(self._folders())

    def read(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step, or None (and a warning that names the file) if it is damaged.

        Raises:
            StorageFailed: the storage cannot be read.
        """
        folder = self._folder(step)
        try:
            manifest = (folder / MANIFEST).read_json()
            contents = {name: (folder / name).read_bytes() for name in manifest["files"]}
            for name, content in contents.items():
                if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
                    raise ValueError(f"{name} has another checksum than its manifest says")
            state = json.loads(contents["state.json"])
            return Checkpoint(step, load(contents["model.safetensors"]), load(contents["optimizer.safetensors"]), state)
        except (FileNotFoundError, ValueError, KeyError) as error:
            logger.warning("the checkpoint %s is damaged and not used: %s", folder, error)
            return None
        except OSError as error:
            # This is no damage. If it were treated as such, the run would overwrite an intact checkpoint.
            raise StorageFailed(f"the checkpoint {folder} cannot be read: {error}") from error

    def latest(self, *, with_best: bool = False) -> Checkpoint | None:
        """The newest intact checkpoint, or None.

        Args:
            with_best: skip a checkpoint if the checkpoint of its best evaluation is damaged, because the run could not
                deliver its best model at the end.

        Raises:
            StorageFailed: the storage cannot be read.
        """
        for step in reversed(self.steps()):
            checkpoint = self.read(step)
            if checkpoint is None:
                continue
            best = checkpoint.state["progress"]["best"] if with_best else None
            if best is None or best["step"] == step or self.read(int(best["step"])) is not None:
                return checkpoint
        return None

    def delete_incomplete(self) -> None:
        """Removes what a writer that was killed has left of a checkpoint. Nobody may be writing."""
        folders = self._folders()
        for step in folders.keys() - set(_complete(folders)):
            folders[step].delete()

    def _write_all(self, request: _WriteRequest) -> None:
        """Runs on the thread: writes a checkpoint and all that are queued meanwhile. If one fails, the queued ones are
        dropped, and the next call of `write` or `wait` raises the error."""
        while True:
            failure: BaseException | None = None
            try:
                request.before()
                self._write(request.checkpoint, request.best_step)
            except _Closed:
                pass
            except BaseException as error:
                failure = error
            with self._lock:
                if failure is not None:
                    self._failure = failure
                    self._requests.clear()
                if not self._requests:
                    self._thread = None
                    return
                request = self._requests.pop(0)

    def _write(self, checkpoint: Checkpoint, best_step: int | None) -> None:
        self._stop_if_closed()
        folder = self._folder(checkpoint.step)
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
        """Called before each change of the folder, because after the end of this run's context another process may
        write to it."""
        if self._closed:
            raise _Closed

    def _delete_old(self, newest_step: int, best_step: int | None) -> None:
        """Keeps the newest few checkpoints, and the best one of each of these: a run that resumes from an older
        checkpoint delivers the best one of that time. Checkpoints of later steps than the newest are deleted, too: the
        run went back to before them."""
        self._best_steps[newest_step] = best_step
        # A checkpoint that was never finished (its writer was killed) does not count, because a run cannot resume from
        # it.
        folders = self._folders()
        kept: set[int | None] = set([step for step in _complete(folders) if step <= newest_step][-self.keep :])
        kept |= {self._best_step(step) for step in kept if step is not None}
        for step, folder in folders.items():
            if step not in kept:
                folder.delete()

    def _best_step(self, step: int) -> int | None:
        """The best step at the time of a checkpoint; read from its files if this process has not written it."""
        if step not in self._best_steps:
            try:
                best = (self._folder(step) / "state.json").read_json()["progress"]["best"]
                self._best_steps[step] = best and int(best["step"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: `latest` skips it
                self._best_steps[step] = None
        return self._best_steps[step]

    def _folder(self, step: int) -> Location:
        """The folder of a step's checkpoint."""
        return self.location / f"{FOLDER_PREFIX}{step:08d}"

    def _folders(self) -> dict[int, Location]:
        """The folders of all checkpoints, finished or not, by step, ascending."""
        folders = [child for child in self.location.children() if child.name.startswith(FOLDER_PREFIX)]
        return {int(folder.name.removeprefix(FOLDER_PREFIX)): folder for folder in folders}


def _complete(folders: Mapping[int, Location]) -> list[int]:
    """The steps of the folders that hold a finished checkpoint."""
    return [step for step, folder in folders.items() if (folder / MANIFEST).is_file()]
