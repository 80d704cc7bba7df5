"""What every worker of a TorchTrainer runs: the training loop, with this worker's rank and device."""

from __future__ import annotations

import threading
from typing import Any

from raypp.cluster.channel import Channel, InterruptNotice, forward_warnings
from raypp.cluster.outcome import Failed, Finished, InterruptedAt, Outcome
from raypp.cluster.shared_folders import check_seen
from raypp.errors import Interrupted, RunFailed, StorageFailed, WorkersLost
from raypp.events import Message, Reported, WorkersPlaced, ignore
from raypp.training.job import Job
from raypp.training.loop import fit
from raypp.training.worker import Worker


def train_worker(job: Job, channel: Channel, may_be_stopped: bool) -> Outcome:
    """Trains and returns the outcome.

    Raises:
        StorageFailed: it may have failed on this worker only, while the others wait for it.
        WorkersLost: the workers do not see the same checkpoints, this node lacks the run's folder or the model that the
            command found, or the first worker cannot reach the command.
    """
    import ray.train
    import ray.util
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    check_seen(job.run)
    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    unacknowledged: list[Any] = []
    sending = threading.Lock()  # the thread that writes checkpoints may warn, too

    def send(event: Any) -> None:
        # To wait for the acknowledgement would cost a step some milliseconds. So it is checked before the next event is
        # sent; it is an error if the command has ended.
        with sending:
            if unacknowledged and ray.wait(unacknowledged, timeout=0)[0]:
                ray.get(unacknowledged.pop())
            unacknowledged[:] = [channel.send(event)]

    def report(metrics: dict[str, Any]) -> None:
        ray.train.report(metrics)
        if first:
            send(Reported(metrics))

    notice = InterruptNotice(channel)
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=get_device(),
        on_event=send if first else ignore,
        on_report=report,
        is_interrupted=notice,
        may_be_stopped=may_be_stopped,
        stops_for_good=lambda: notice.stopped,
    )
    if first:
        send(WorkersPlaced(ray.util.get_current_placement_group().id.hex()))
    try:
        with forward_warnings(lambda text: worker.on_event(Message(text))):
            result = fit(job, worker)
        ray.get(unacknowledged)  # it is acknowledged after all earlier events, so that none is lost
        return Finished(result)
    except Interrupted as interrupt:
        return InterruptedAt(interrupt.step)
    except RayActorError as error:
        # Raised and not returned, because the other workers wait for this one. If the command ended, nobody reads it.
        raise WorkersLost("the command cannot be reached") from error
    except (StorageFailed, WorkersLost):
        raise
    except RunFailed as failure:
        return Failed(failure)  # every worker does the same
    finally:
        notice.close()
