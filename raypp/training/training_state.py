"""Everything that a training step changes. A checkpoint holds it, and a run resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from raypp.errors import WorkersLost
from raypp.evaluation.direction import merit
from raypp.events import Message
from raypp.pruning.controller import LambdaController, NoController
from raypp.training.checkpoint import Checkpoint, Checkpoints, capture, restore
from raypp.training.job import Job
from raypp.training.steps import StepPlan
from raypp.training.worker import Worker


@dataclass
class RunProgress:
    """Counts of a run since its first step; a checkpoint holds them next to the model."""

    steps: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock time of all sessions up to this step, in seconds."""
    device_seconds: float = 0.0
    """The same, but each session's time is multiplied by its devices: GPUs, or CPU threads, of all workers."""
    tokens: int = 0
    """Tokens trained on, without padding."""
    computed_tokens: int = 0
    """Tokens trained on, with padding."""
    best: dict[str, float] | None = None
    """Step and headline value of the best evaluation at the final density; the first one among equals."""

    def note(self, step: int, headline: str, metrics: Mapping[str, float], eligible: bool) -> None:
        """Updates `best` with an evaluation; `eligible` tells whether it may be the best one."""
        value = metrics[headline]
        if eligible and (self.best is None or merit(headline, value) > merit(headline, self.best["value"])):
            self.best = {"step": step, "value": value}


@dataclass(frozen=True)
class TrainingState:
    """The objects that hold the state of training. All of them are changed in place."""

    model: nn.Module
    extra_modules: nn.Module
    """Trained together with the model, but not delivered with it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    controller: LambdaController | NoController

    def capture(self, steps: StepPlan, progress: RunProgress) -> Checkpoint:
        """A checkpoint of the state after `progress.steps` steps."""
        state = {
            "total_steps": steps.total,
            "warmup_steps": steps.warmup,
            "progress": asdict(progress),
            "scaler": self.scaler.state_dict(),
            "controller": self.controller.state_dict(),
        }
        return capture(progress.steps, self.model, self.optimizer, state, extra_modules=self.extra_modules)

    def resume(self, job: Job, checkpoints: Checkpoints, worker: Worker) -> RunProgress:
        """Restores the last checkpoint, if there is one, and returns its progress.

        Raises:
            FailsAgain: the checkpoint belongs to another model.
            StorageFailed: the checkpoint cannot be read.
            WorkersLost: the workers see different checkpoints.
        """
        latest = checkpoints.latest(with_best=job.experiment.evaluation.select == "best")
        progress = RunProgress()
        if latest is not None:
            restore(latest, self.model, self.optimizer, extra_modules=self.extra_modules)
            self.scaler.load_state_dict(latest.state["scaler"])
            self.controller.load_state_dict(latest.state["controller"])
            saved = latest.state["progress"]
            # Checkpoints of older versions of raypp have no device_seconds; assume as many devices as now.
            devices = worker.num_devices(job.experiment.cluster.gpus_per_worker)
            progress = RunProgress(**{"device_seconds": saved["seconds"] * devices, **saved})
            worker.on_event(Message(f"{job.phase}: resumes after step {latest.step}"))
        elif checkpoints.steps():
            worker.on_event(Message(f"{job.phase}: none of its checkpoints can be used; it starts over"))
        if len(found := set(worker.gather(progress.steps))) > 1:
            raise WorkersLost(f"the workers see different checkpoints in {checkpoints.location}: steps {sorted(found)}")
        return progress
