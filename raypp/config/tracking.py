"""Settings of tracking: where metrics and figures are recorded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raypp.config.base import Settings


class TrackingSettings(Settings):
    """Where metrics and figures are recorded, in addition to metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Whether Weights & Biases records the run. auto: online with an API key and offline without one, unless
    `WANDB_MODE` is set; online: regardless of `WANDB_MODE`, with a warning if there is no key; offline: into the run's
    folder, for `wandb sync`; off: not at all."""
    project: str = "raypp"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null: the default of the account."""
    statistics_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between records of the mean, standard deviation, minimum and maximum of every parameter and its gradient.
    They are written to metrics.jsonl and W&B (`parameters/…`, `gradients/…`: eight numbers per parameter); W&B also
    gets their histograms. null: no records."""
    figures: Literal["auto", "all", "main"] = "auto"
    """Which figures are drawn at the end of a run, for its folder and W&B. main: schedule, evaluations, loss and
    density by layer; all: also heads, scores, weights, movement and a mask, which take seconds; auto: main in the
    trials of a sweep, all elsewhere. The data for all figures is always kept, so `raypp report` and `raypp.draw` can
    draw all of them later."""
