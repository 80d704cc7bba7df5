"""What every worker of a TorchTrainer runs: the loop, with this worker's place in the group."""

from __future__ import annotations

import threading
from typing import Any

from raypp.cluster.channel import Channel, InterruptNotice, warnings_to
from raypp.cluster.outcome import Failed, Finished, Left, Outcome
from raypp.cluster.shared_folders import check_seen
from raypp.errors import Interrupted, RunFailed, StorageFailed, WorkersLost
from raypp.events import Message, Reported, WorkersPlaced
from raypp.training.job import Job
from raypp.training.loop import fit
from raypp.training.worker import Worker, ignore


def train_worker(job: Job, channel: Channel, may_be_stopped: bool) -> Outcome:
    """Trains, and returns what came of it.

    Raises:
        ConfigError: this node does not see the run's folder.
        StorageFailed: only this worker may know of it, and the others wait for it.
        WorkersLost: the workers do not see the same checkpoints, or the first one does not reach the command.
    """
    import ray.train
    import ray.util
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    check_seen(job.run)
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
        return Finished(result)
    except Interrupted as left:
        return Left(left.step)
    except RayActorError as error:
        # Not returned: the other workers wait for this one. Where the command has ended, nobody reads it.
        raise WorkersLost("the command cannot be reached") from error
    except (StorageFailed, WorkersLost):
        raise
    except RunFailed as failure:
        return Failed(str(failure))  # as every worker does
    finally:
        notice.close()
