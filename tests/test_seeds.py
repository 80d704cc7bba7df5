"""Seeds keep their values: other ones would give another model for the same settings."""

from __future__ import annotations

from raypp.seeds import named_seed, seed_of


def test_seeds_stay_as_they_are() -> None:
    assert named_seed(42, "encoder.layer.0.output.dense") == 229831698016647452
    assert seed_of(42, 3) == 10780303604805190
    assert seed_of(42, 3, 1) == 32260926567483126
