"""All that a step changes: what a checkpoint holds, and a run goes on from."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from raypp.errors import WorkersLost
from raypp.events import Message
from raypp.pruning.controller import LambdaController, NoController
from raypp.training.checkpoint import Checkpoint, Checkpoints, capture, restore
from raypp.training.job import Job
from raypp.training.recording import RunProgress
from raypp.training.steps import StepPlan
from raypp.training.worker import Worker


@dataclass(frozen=True)
class TrainingState:
    """Each part of it is changed in place."""

    model: nn.Module
    extra_modules: nn.Module
    """Trained together with the model, but not delivered with it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    controller: LambdaController | NoController

    def capture(self, steps: StepPlan, progress: RunProgress) -> Checkpoint:
        """A checkpoint of it, after `progress.steps` steps."""
        state = {
            "total_steps": steps.total,
            "warmup_steps": steps.warmup,
            "progress": asdict(progress),
            "scaler": self.scaler.state_dict(),
            "controller": self.controller.state_dict(),
        }
        return capture(progress.steps, self.model, self.optimizer, state, extra_modules=self.extra_modules)

    def resume(self, job: Job, checkpoints: Checkpoints, worker: Worker) -> RunProgress:
        """Goes back to the last checkpoint, if there is one; returns what was done until then.

        Raises:
            WorkersLost: the workers do not see the same one.
        """
        latest = checkpoints.latest(with_best=job.experiment.evaluation.select == "best")
        progress = RunProgress()
        if latest is not None:
            restore(latest, self.model, self.optimizer, extra_modules=self.extra_modules)
            self.scaler.load_state_dict(latest.state["scaler"])
            self.controller.load_state_dict(latest.state["controller"])
            saved = latest.state["progress"]
            # One that an older raypp has written does not say what trained: as much as now.
            devices = worker.num_devices(job.experiment.cluster.gpus_per_worker)
            progress = RunProgress(**{"device_seconds": saved["seconds"] * devices, **saved})
            worker.on_event(Message(f"{job.phase}: goes on after step {latest.step}"))
        elif checkpoints.steps():
            worker.on_event(Message(f"{job.phase}: none of its checkpoints can be used; starts over"))
        if len(found := set(worker.gather(progress.steps))) > 1:
            raise WorkersLost(f"the workers see different checkpoints in {checkpoints.location}: steps {sorted(found)}")
        return progress
