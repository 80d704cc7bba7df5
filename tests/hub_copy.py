"""Repositories of the Hugging Face hub, copied to this machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml


def hub_copy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, configurations: Mapping[str, Mapping[str, datasets.Dataset]]
) -> Path:
    """Writes the splits of each configuration in the hub's layout, with the cache of `datasets` next to it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    card: list[dict[str, Any]] = []
    for name, splits in configurations.items():
        files = [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits]
        card.append({"config_name": name, "data_files": files})
        (folder / "copy" / name).mkdir(parents=True)
        for split, dataset in splits.items():
            dataset.to_parquet(folder / "copy" / name / f"{split}.parquet")
    (folder / "copy" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return folder / "copy"


def hub_models(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, commits: Mapping[str, Path]) -> Path:
    """Copies a model's folders into a cache of the hub in `folder`, as the model's commits; the last one is its main.

    Returns:
        The folder of the model in the cache.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    model = folder / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    for commit, source in commits.items():
        shutil.copytree(source, model / "snapshots" / commit)
        (model / "refs" / "main").write_text(commit)
    return model
