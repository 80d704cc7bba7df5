"""Ray Train's controllers, the actors that supervise groups of workers, from the process that has started them."""

from __future__ import annotations

import contextlib


def kill_controllers() -> None:
    """Kills the controllers that this process has started: `TorchTrainer.fit` raises RayActorError then, and their
    workers end with them. Ray Train keeps the handles to itself, but Ray knows them by the ids of the actors."""
    import ray
    from ray._private.state import state
    from ray._private.worker import global_worker
    from ray.exceptions import ActorHandleNotFoundError

    own = ray.get_runtime_context().get_job_id()
    for key, actor in state.actor_table(None).items():
        if actor["JobID"] == own and actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
            with contextlib.suppress(ActorHandleNotFoundError):  # another process of this job, a trial, has started it
                global_worker.core_worker.kill_actor(ray.ActorID.from_hex(key), True)
