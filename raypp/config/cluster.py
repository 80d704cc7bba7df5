"""Settings of where an experiment runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import Settings


class ClusterSettings(Settings):
    """Where an experiment runs and where its files are. None of these settings changes a run's result, except that
    `train.micro_batches: auto` follows workers."""

    workers: Annotated[int, Field(ge=0)] | Annotated[tuple[int, int], Strict(False)] = 1
    """Number of Ray Train workers of a run, or of each trial of a sweep. 0: train in this process, without Ray Train.
    [min, max]: elastic; the run uses as many workers as the cluster has resources for, and continues when nodes leave
    or join. A sweep gives each trial its minimum and divides the remaining resources evenly."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPUs of each worker. auto: the cluster's CPUs divided evenly among the workers, but 1 with gpus_per_worker and 1
    in a sweep. With autoscaling a number is required, except with GPUs or in a sweep."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each worker: 0 (train on the CPU), 1, or a fraction, so that several runs or trials of one worker each
    share a GPU."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """How workers are placed on nodes, with the strategies of Ray's placement groups. pack: on few nodes; spread: on
    many nodes; strict_pack: all on one node; strict_spread: each on a node of its own."""
    grow_after_seconds: Annotated[float, Field(ge=0)] = 60
    """Elastic workers only: minimum seconds of training before the workers restart as a larger group. A restart takes
    about ten seconds, and new nodes often join one after another."""
    autoscaling: bool = False
    """True on an autoscaling cluster (`ray up`, KubeRay), which raypp cannot detect. Missing resources are then waited
    for instead of refused. Resources in use by others are always waited for. Train workers wait for half an hour at
    most, or in a sweep for as long as other trials train; Ray Data's tasks and trials of one worker wait without a
    limit."""
    dashboard: bool = False
    """Run Ray's dashboard, on 127.0.0.1 only, while the command runs. This applies to a Ray that raypp starts: the
    cluster of `RAY_ADDRESS` has its own dashboard, or none."""
    storage: str = "runs"
    """Where runs and sweeps are written, in `<storage>/<experiment>/<run>`: a local path or a URI (s3://, gs://)."""
    store: str | None = None
    """Where the artifacts that runs share are kept (features, teachers, teacher logits), named by their content. It
    holds no runs: those are in storage. null: the folder `store` in storage."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, in addition to the checkpoint at every evaluation. null: only at evaluations."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Number of latest checkpoints that are kept for resuming. The checkpoint of the best evaluation at the final
    density is kept in addition."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures a run, or a trial of a sweep, tolerates before it fails. An elastic trial that fails is retried
    once more, with a new count. With `workers: 0` there is no automatic retry; run the command again."""

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run can continue with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers the experiment asks for."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.min_workers < self.max_workers

    @model_validator(mode="after")
    def _range_goes_up(self) -> ClusterSettings:
        if isinstance(self.workers, tuple) and not 1 <= self.workers[0] <= self.workers[1]:
            raise ValueError(f"workers: a range is [min, max] with 1 <= min <= max, got {list(self.workers)}")
        if self.is_elastic and self.placement not in ("pack", "spread"):
            raise ValueError(
                f"placement: elastic workers ([min, max]) are placed wherever there are resources, got "
                f"{self.placement}; allowed: pack, spread"
            )
        if self.gpus_per_worker > 1:
            raise ValueError(
                f"gpus_per_worker: a worker uses at most 1 GPU, got {self.gpus_per_worker}; ask for more workers"
            )
        return self
