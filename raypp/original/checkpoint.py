"""Loads checkpoints of the original movement-pruning code into a patched model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def load_original_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads a state dict of the original code, in which `….mask_scores` is next to `….weight`.

    The masks do not follow by themselves: call `Pruner.refresh` afterwards.

    Args:
        model: patched by `Pruner`, with the method of the checkpoint.

    Raises:
        ValueError: keys are missing or unexpected, or shapes differ; names all of them, and loads nothing.
    """
    expected = model.state_dict()
    # The original's transformers saved position_ids, a constant that today's computes. Every model of the original had
    # a pooler; today's have none where the head does not read it, as in question answering.
    is_pooled = any("pooler" in key.split(".") for key in expected)
    given = {
        key: value
        for key, value in state_dict.items()
        if not key.endswith("embeddings.position_ids") and (is_pooled or "pooler" not in key.split("."))
    }
    problems = [f"missing: {key}" for key in expected if key not in given]
    problems += [f"unexpected: {key}" for key in given if key not in expected]
    problems += [
        f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if problems:
        raise ValueError("the state dict does not fit the patched model: " + "; ".join(problems))
    model.load_state_dict(given)
