"""The progress of a run: its best evaluation."""

from __future__ import annotations

from raypp.training.training_state import RunProgress


def test_the_best_evaluation_is_the_highest_or_for_perplexity_the_lowest() -> None:
    for headline, best in (("eval/accuracy", 2), ("eval/perplexity", 3)):
        progress = RunProgress()
        for step, value in ((1, 8.0), (2, 9.0), (3, 7.0), (4, 7.0)):
            progress.note(step, headline, {headline: value}, eligible=True)
        progress.note(5, headline, {headline: 100.0}, eligible=False)
        progress.note(6, headline, {headline: 0.1}, eligible=False)
        assert progress.best is not None
        assert progress.best["step"] == best
