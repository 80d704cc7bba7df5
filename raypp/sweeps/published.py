"""Published results of pruned BERT-base, for comparison with a front.

They are from Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (arXiv:2005.07683), table 2, rows
with distillation: dev scores at 10% and 3% remaining weights in the encoder's linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raypp.config import METHOD_LABELS, LayerRule
from raypp.sweeps.space import changed_fields, varies

SOURCE = "Sanh et al. 2020"
STUDENT = "bert-base-uncased"


@dataclass(frozen=True)
class PublishedCurve:
    """The results of one method on one task."""

    task: str
    method: str
    """The method, as in `pruning.method`."""
    headline: str
    """The metric's key, as in a run's result."""
    points: tuple[tuple[float, float], ...]
    """(density, metric), both 0 to 1."""

    @property
    def label(self) -> str:
        return f"{METHOD_LABELS[self.method]} ({SOURCE})"


def _curves(task: str, headline: str, **methods: tuple[float, float]) -> tuple[PublishedCurve, ...]:
    """The curves of a task, given each method's scores (%) at 10% and at 3%."""
    return tuple(
        PublishedCurve(task, method, headline, ((0.10, at_10 / 100), (0.03, at_3 / 100)))
        for method, (at_10, at_3) in methods.items()
    )


CURVES = (
    *_curves(
        "mnli",
        "eval/matched/accuracy",
        magnitude=(78.3, 69.4),
        l0=(78.7, 76.0),
        topk=(80.1, 76.5),
        sigmoid_threshold=(81.2, 79.5),
    ),
    *_curves(
        "qqp",
        "eval/accuracy",
        magnitude=(79.8, 72.4),
        l0=(88.1, 87.0),
        topk=(89.7, 86.1),
        sigmoid_threshold=(90.2, 89.1),
    ),
    *_curves(
        "squad",
        "eval/f1",
        magnitude=(80.1, 59.6),
        l0=(81.9, 75.8),
        topk=(84.3, 78.0),
        sigmoid_threshold=(84.9, 82.3),
    ),
)


def published_student(settings: Mapping[str, Any]) -> str | None:
    """The encoder whose linear layers all trials prune. None if the trials have several encoders, or prune only some
    layers or matrices, or change the configuration: their densities are not comparable then.

    Args:
        settings: the settings of a sweep's experiment, as in JSON.
    """
    student, changed = settings["student"], changed_fields(settings["sweep"])
    is_whole = student["layers"] is None and student["config"] is None
    is_whole &= not any(varies(f"student.{field}", changed) for field in ("model", "layers"))
    is_whole &= not any(name.startswith(("student.config", "pruning.layers")) for name in changed)
    sections = [settings["pruning"], *changed.get("pruning", ())]
    is_whole &= all(
        (section or {}).get("layers") in (None, LayerRule().model_dump(mode="json")) for section in sections
    )
    return student["model"] if is_whole else None


def published_curves(task: str, student: str | None, headline: str) -> list[PublishedCurve]:
    """The published curves for a task, an encoder (folder or hub name) and a metric; most have none."""
    if student is None or student.rstrip("/").rsplit("/", 1)[-1] != STUDENT:
        return []
    return [curve for curve in CURVES if (curve.task, curve.headline) == (task, headline)]
