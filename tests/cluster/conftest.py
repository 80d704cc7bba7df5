"""One embedded Ray for all tests that need one, as quiet as the command line starts it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

# Read by Ray when it is imported or started. The token keeps Ray from writing one of its own into the home folder.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with four CPUs, started once."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
