"""The log's window: means over steps, and float16's skipped ones."""

from __future__ import annotations

import math

import pytest

from raypp.recording import Progress, Window

WEIGHTS = {"hard_loss": 0.25, "soft_loss": 0.75}


def test_means_are_over_rows_and_steps() -> None:
    window = Window(("hard_loss", "soft_loss"))
    window.add([8.0, 16.0, 100, 120], counts=dict.fromkeys(WEIGHTS, 8), norm=1.0, seconds=0.5)
    window.add([4.0, 4.0, 50, 80], counts=dict.fromkeys(WEIGHTS, 4), norm=3.0, seconds=0.3)
    assert (window.tokens, window.computed_tokens) == (150, 200)
    assert window.drain(WEIGHTS) == pytest.approx(
        {
            "train/hard_loss": 1.0,
            "train/soft_loss": 20 / 12,
            "train/loss": 0.25 * 1.0 + 0.75 * 20 / 12,
            "train/gradient_norm": 2.0,
            "perf/step_seconds": 0.4,
        }
    )
    assert window == Window(("hard_loss", "soft_loss")), "it starts anew"


def test_each_term_has_its_own_count() -> None:
    window = Window(("hard_loss", "soft_loss"))
    for _ in range(2):
        window.add([8.0, 16.0, 100, 120], counts={"hard_loss": 4, "soft_loss": 32}, norm=1.0, seconds=0.5)
    metrics = window.drain(WEIGHTS)
    assert (metrics["train/hard_loss"], metrics["train/soft_loss"]) == (2.0, 0.5)


def test_the_best_evaluation_is_the_highest_or_of_perplexity_the_lowest() -> None:
    for headline, best in (("eval/accuracy", 2), ("eval/perplexity", 3)):
        progress = Progress()
        for step, value in ((1, 8.0), (2, 9.0), (3, 7.0), (4, 7.0)):
            progress.note(step, headline, {headline: value}, eligible=True)
        progress.note(5, headline, {headline: 100.0}, eligible=False)
        progress.note(6, headline, {headline: 0.1}, eligible=False)
        assert progress.best is not None
        assert progress.best["step"] == best


@pytest.mark.parametrize("broken", [([math.inf, 1.0, 10, 10], 1.0), ([1.0, 1.0, 10, 10], math.nan)])
def test_a_skipped_step_is_counted_and_spoils_no_mean(broken: tuple[list[float], float]) -> None:
    sums, norm = broken
    window = Window(("hard_loss", "soft_loss"))
    window.add(sums, counts=dict.fromkeys(WEIGHTS, 1), norm=norm, seconds=0.1)
    assert window.drain(WEIGHTS) == {"perf/step_seconds": 0.1, "train/skipped_steps": 1}
    window.add(sums, counts=dict.fromkeys(WEIGHTS, 1), norm=norm, seconds=0.1)
    window.add([8.0, 16.0, 100, 120], counts=dict.fromkeys(WEIGHTS, 8), norm=1.0, seconds=0.3)
    metrics = window.drain(WEIGHTS)
    assert metrics["train/skipped_steps"] == 1
    assert (metrics["train/hard_loss"], metrics["train/gradient_norm"]) == (1.0, 1.0)
    assert metrics["perf/step_seconds"] == pytest.approx(0.2)
