"""The training loop's view of its process: rank, device, and collective operations over all workers.

The loop is the same in this process (`Worker()`), in a Tune trial's actor and in every TorchTrainer worker; only the
`Worker` differs. With more than one worker, collectives use torch.distributed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raypp.events import ignore, never

BUCKET_BYTES = 64 << 20  # size of one message between workers


@dataclass
class Worker:
    """One of `world_size` processes that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    on_event: Callable[[Any], None] = ignore
    """Called with progress events for the display; may be called often."""
    on_report: Callable[[dict[str, Any]], None] = ignore
    """Called with the metrics of every evaluation, on every worker at the same step."""
    is_interrupted: Callable[[], bool] = never
    """Whether this process must stop (the command ends, the node is preempted). Called at every step; if it is true on
    one worker, all workers save that step and raise `Interrupted`."""
    stops_for_good: Callable[[], bool] = never
    """Whether an interrupted run is not resumed, because its sweep has stopped it."""
    may_be_stopped: bool = False
    """Whether `on_report` may end the run. If so, the log of an evaluation is durable before it is reported."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """`CPU`, or the GPU's model."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def num_devices(self, gpus_per_worker: float) -> float:
        """Devices of all workers together: GPUs (or fractions of them) or, on CPUs, threads."""
        return self.world_size * (gpus_per_worker if self.device.type == "cuda" else torch.get_num_threads())

    def shares(self, micro_batches: int) -> range:
        """The shares of a global batch that this worker computes: share m runs on worker m mod world_size."""
        return range(self.rank, micro_batches, self.world_size)

    def to_device(self, value: Tensor) -> Tensor:
        """The tensor on this worker's device; the copy to a GPU is asynchronous."""
        if self.device.type == "cuda":
            return value.pin_memory().to(self.device, non_blocking=True)
        return value.to(self.device)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], numbers: Tensor) -> Tensor:
        """Sums the gradients over all workers, in place, and returns the sum of `numbers` (float64 [n]).

        A parameter without a gradient on all workers keeps none, so that the optimizer skips it on every worker.
        """
        if self.world_size == 1:
            return numbers
        used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float64)
        flags = torch.cat([used.to(self.device), numbers.to(self.device)])
        dist.all_reduce(flags)
        gradients = []
        for parameter, count in zip(parameters, flags[: len(parameters)].tolist(), strict=True):
            if count == 0:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))
        return flags[len(parameters) :].to(numbers.device)

    def broadcast_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Copies the tensors of the first worker to all others, in place.

        If the nodes differ (in their CPUs' vector units, or in whether they have a compiler), sums may differ in their
        last bits, and after many steps a score may be above the threshold on one worker and below it on another.
        """
        if self.world_size == 1:
            return
        with torch.no_grad():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.broadcast(flat, src=0)
                if self.is_first:
                    continue
                for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank, on every worker."""
        if self.world_size == 1:
            return [value]
        content = pickle.dumps(value)
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, content)
        return [pickle.loads(item) for item in gathered]

    def barrier(self) -> None:
        """Waits until all workers are here."""
        if self.world_size > 1:
            self.gather(None)


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Groups tensors into buckets of about `BUCKET_BYTES`: few messages, and no second copy of the whole model."""
    buckets: list[list[Tensor]] = []
    remaining = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size > remaining:
            buckets.append([])
            remaining = BUCKET_BYTES
        buckets[-1].append(tensor)
        remaining -= size
    return buckets
