"""Which parameters a run leaves as they are, in families that keep their embeddings in different places."""

from __future__ import annotations

from typing import Any

import pytest

from raypp.config import Experiment
from raypp.freezing import freezes_embeddings

PRUNING = {"method": "magnitude", "final_density": 0.5}


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate({"name": "any", "task": "mrpc", "student": {"model": "any"}} | sections)


@pytest.mark.parametrize(
    ("sections", "frozen"),
    [
        ({}, False),
        ({"pruning": PRUNING}, True),
        ({"pruning": PRUNING, "student": {"model": "any", "layers": [0, 2]}}, True),
        ({"pruning": PRUNING, "student": {"model": "any", "config": {"num_hidden_layers": 2}}}, False),
        ({"pruning": PRUNING, "train": {"freeze_embeddings": False}}, False),
        (
            {
                "student": {"model": "any", "config": {"num_hidden_layers": 2}},
                "train": {"freeze_embeddings": True},
            },
            True,
        ),
    ],
)
def test_embeddings_are_frozen_where_a_pruned_student_has_learned_some(sections: dict[str, Any], frozen: bool) -> None:
    assert freezes_embeddings(experiment(**sections)) is frozen
