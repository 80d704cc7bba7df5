"""What every worker of a TorchTrainer runs: the loop, with this worker's place in the group."""

from __future__ import annotations

import threading
from typing import Any

from raypp.cluster.channel import Channel, InterruptNotice, warnings_to
from raypp.errors import Interrupted, RunFailed, StorageFailed
from raypp.events import Message, Reported, WorkersPlaced
from raypp.job import Job
from raypp.loop import fit
from raypp.worker import Worker, ignore


def train_worker(job: Job, channel: Channel, may_be_stopped: bool) -> dict[str, Any]:
    """Trains, and returns one of: `result`; `left`, the step that was saved when it was asked to leave; `failed`, with
    what trying again would not help."""
    import ray.train
    import ray.util
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    told: list[Any] = []
    telling = threading.Lock()  # the thread that writes checkpoints warns, too

    def tell(event: Any) -> None:
        # Waiting for the answer would cost some milliseconds that a step should not take. So it is looked at before the
        # next event; it is an error when the command has ended.
        with telling:
            if told and ray.wait(told, timeout=0)[0]:
                ray.get(told.pop())
            told[:] = [channel.tell(event)]

    def report(metrics: dict[str, Any]) -> None:
        ray.train.report(metrics)
        if first:
            tell(Reported(metrics))

    notice = InterruptNotice(channel)
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=get_device(),
        on_event=tell if first else ignore,
        on_report=report,
        is_interrupted=notice,
        may_be_stopped=may_be_stopped,
        stops_for_good=lambda: notice.stopped,
    )
    if first:
        tell(WorkersPlaced(ray.util.get_current_placement_group().id.hex()))
    try:
        with warnings_to(lambda text: worker.on_event(Message(text))):
            result = fit(job, worker)
        ray.get(told)  # answered after all that was told before: nothing is lost
        return {"result": result}
    except Interrupted as left:
        return {"left": left.step}
    except RayActorError:
        return {"failed": "the command that started this run has ended"}
    except StorageFailed:
        raise
    except RunFailed as failure:
        # Every worker fails alike and trying again would not help: returned, so that Ray Train does not.
        return {"failed": str(failure)}
    finally:
        notice.close()
