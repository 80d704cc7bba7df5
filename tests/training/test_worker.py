"""The collective operations of workers, in two processes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raypp.training.worker import Worker


def run_collectives(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    worker = Worker(rank=rank, world_size=2, device=torch.device("cpu"))
    torch.manual_seed(rank)
    tensors = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (20 << 20,), (7,))]  # more than one message
    versions = [tensor._version for tensor in tensors]
    worker.broadcast_from_first(tensors)
    torch.manual_seed(0)
    expected = [torch.randn(tensor.shape) for tensor in tensors]
    assert all(torch.equal(tensor, first) for tensor, first in zip(tensors, expected, strict=True))
    # The version counters show that the tensors have changed, for code that caches values computed from them.
    assert [tensor._version > version for tensor, version in zip(tensors, versions, strict=True)] == [rank > 0] * 3
    assert_sums(worker)
    dist.destroy_process_group()


def assert_sums(worker: Worker) -> None:
    """Tests gradients that both workers have, that one has, and that none has."""
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (20 << 20,), (7,), (2,))]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, worker.rank + 1.0)
    if not worker.is_first:
        parameters[2].grad = torch.full_like(parameters[2], 5.0)
    numbers = worker.all_reduce_gradients(parameters, torch.tensor([1.0, worker.rank], dtype=torch.float64))
    assert numbers.tolist() == [2.0, 1.0]
    ends = [None if p.grad is None else (float(p.grad.min()), float(p.grad.max())) for p in parameters]
    assert ends == [(3.0, 3.0), (3.0, 3.0), (5.0, 5.0), None]


def test_workers_sum_gradients_and_copy_the_first_workers_tensors(tmp_path: Path) -> None:
    mp.spawn(run_collectives, (str(tmp_path),), nprocs=2)


def test_a_single_worker_changes_nothing() -> None:
    tensor = torch.ones(3)
    Worker(device=torch.device("cpu")).broadcast_from_first([tensor])
    assert torch.equal(tensor, torch.ones(3))
