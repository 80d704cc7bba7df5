"""Settings of where an experiment runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import Settings


class ClusterSettings(Settings):
    """Where it runs and where it keeps things. None of this changes a run's result, except that `train.micro_batches:
    auto` follows workers."""

    workers: Annotated[int, Field(ge=0)] | Annotated[tuple[int, int], Strict(False)] = 1
    """Train workers; 0: in this process without Ray Train; [min, max]: as many as the nodes have room
    for, which come and go; in a sweep those of each trial, within its share of the cluster."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPUs of each worker; auto: the cluster's CPUs shared evenly, but 1 with gpus_per_worker and 1 in a sweep. With
    autoscaling a number must be given, unless there are GPUs or it is a sweep."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPU of each worker: 1, or 0 for the CPU; or a part of one, which several runs and trials of one worker share."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """How workers are laid over nodes, as Ray's placement groups: pack, on few; spread, on many; strict_pack, on one;
    strict_spread, on one each."""
    grow_after_seconds: Annotated[float, Field(ge=0)] = 60
    """With workers that come and go: seconds that they train, at least, before they start again as more. It takes about
    ten, and nodes often come one after the other."""
    autoscaling: bool = False
    """Whether the cluster starts nodes for work that waits for them (`ray up`, KubeRay; Ray does not tell). What is not
    there is then waited for, and not refused, as what others use is always: Train workers half an hour at most, or as
    long as other trials of the sweep train; tasks of Ray Data and trials of one worker as long as it takes."""
    dashboard: bool = False
    """Whether Ray's dashboard, on 127.0.0.1 alone, is there as long as the command. For the Ray that a command starts:
    the cluster of `RAY_ADDRESS` has its own, or none."""
    storage: str = "runs"
    """Folder of all runs; a local path or a URI (s3://, gs://)."""
    store: str | None = None
    """Folder of what runs share (features, teachers, teacher logits), by content; null: the folder `store` in
    storage."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, beside the one at every evaluation; null: those alone."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints that are kept for resuming; the one of the best evaluation at the final density is kept,
    too."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Failures of workers that a run, or a trial of a sweep, outlives; one more ends it. A trial whose workers come and
    go is then tried once more from the start of that count. Without workers (0) there is nobody to try again but the
    same command."""

    @property
    def min_workers(self) -> int:
        """The fewest workers it goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers the experiment asks for."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether it goes on with fewer workers, and with more again."""
        return self.min_workers < self.max_workers

    @model_validator(mode="after")
    def _range_goes_up(self) -> ClusterSettings:
        if isinstance(self.workers, tuple) and not 1 <= self.workers[0] <= self.workers[1]:
            raise ValueError(f"workers: a range is [min, max] with 1 <= min <= max, got {list(self.workers)}")
        if self.is_elastic and self.placement not in ("pack", "spread"):
            raise ValueError(
                f"placement: workers that come and go ([min, max]) are laid as there is room, got {self.placement}; "
                "allowed: pack, spread"
            )
        if self.gpus_per_worker > 1:
            raise ValueError(
                f"gpus_per_worker: a worker uses at most 1 GPU, got {self.gpus_per_worker}; ask for more workers"
            )
        return self
