"""A repository of the Hugging Face hub, copied to this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
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
