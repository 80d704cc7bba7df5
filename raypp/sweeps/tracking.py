"""Records a sweep in W&B as a group: each trial records its own run, and one more run has the front."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raypp.config import Experiment
from raypp.storage import Location
from raypp.sweeps.front import Point, front_rows
from raypp.training.tracking import make_tracker, upload_recorded


def tracking_group(folder: Location) -> str:
    """The W&B group of a sweep, from its folder: `<experiment>/sweep-1a2b3c4d`."""
    return f"{folder.parent.name}/{folder.name}"


def record_sweep(
    folder: Location,
    experiment: Experiment,
    points: Sequence[Point],
    result: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Records the front as a table and a figure (`front.png` of the folder), and the sweep's numbers as the summary.

    Args:
        warn: called with each message for the user, such as the reason why W&B cannot be reached.
    """
    group = tracking_group(folder)
    with contextlib.ExitStack() as stack:
        # W&B writes local files; those of a remote sweep are uploaded afterwards.
        local = folder.is_local
        here = Path(folder.path if local else stack.enter_context(tempfile.TemporaryDirectory(prefix="raypp-")))
        tracker = make_tracker(
            experiment.tracking,
            run_folder=here,
            run_name=f"{group}/front",
            run_id=group.replace("/", "-"),
            group=group,
            config=experiment.model_dump(mode="json"),
            resume_step=None,
            warn=warn,
        )
        figure = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raypp-")), "front.png")
        figure.write_bytes((folder / "front.png").read_bytes())
        tracker.log_figures({"front/figure": figure})
        tracker.log_table("front/table", *front_rows(points, result["headline"]))
        best = max(points, key=lambda point: point.merit).metric
        numbers = {name: result[name] for name in ("seconds", "device_hours", "teacher") if result[name] is not None}
        tracker.summary({f"best/{result['headline']}": best, "trials": result["counts"]} | numbers)
        tracker.finish(0)
        if not local:
            upload_recorded(here, folder)


def sync_command(folder: Location, runs: Iterable[str]) -> str | None:
    """The command that uploads what the sweep and its runs have recorded offline; None if there is nothing.

    Args:
        runs: names of the trials' runs.
    """
    places = [folder, *(folder.parent / run for run in runs)]
    recorded = (child.name for place in places for child in (place / "wandb").children())
    if not any(name.startswith("offline-run-") for name in recorded):
        return None
    if not folder.is_local:
        return f"wandb sync offline-run-*  # download them first from {folder.parent / '*' / 'wandb'}"
    return f"wandb sync {shlex.quote(str(folder.parent))}/*/wandb/offline-run-*"
