"""Settings of where an experiment is recorded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypp.config.base import Settings


class TrackingSettings(Settings):
    """Where metrics are recorded besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Whether Weights & Biases records the run. auto: online with an API key, offline without, unless `WANDB_MODE` says
    otherwise; online: whatever that says, and a missing key is warned of; offline: into the run's folder, for `wandb
    sync`; off: not at all."""
    project: str = "raypp"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null for the default."""
    statistics_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between two records of every parameter's and gradient's mean, standard deviation, minimum and maximum, in
    metrics.jsonl and W&B (`parameters/…`, `gradients/…`: eight numbers a parameter), and of their histograms in W&B.
    null: none."""
    figures: Literal["auto", "all", "main"] = "auto"
    """Which figures are drawn at a run's end, for its folder and W&B. main: schedule, evaluations, loss and density by
    layer; all: those of heads, scores, weights and masks, too, which take seconds. What they are drawn from is always
    kept: `raypp report` and `raypp.draw` have all of them. auto: all, but main in a sweep's trials, where seconds add
    up."""
