"""Statistics of every parameter and its gradient, as the original distiller and masked_run scripts logged them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NAMES = ("mean", "std", "min", "max")
BINS = 64
BinCounts = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Counts [BINS] and edges [BINS + 1]."""


@torch.no_grad()
def parameter_statistics(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """Mean, standard deviation (of the population), minimum and maximum of each trained parameter and its gradient.

    Returns:
        Values by `parameters/NAME/mean` and so on and, if there is a gradient, by `gradients/NAME/mean` and so on. A
        tensor with a value that is not finite (a gradient of a step that float16's scaler skips) is left out.
    """
    found = {
        key: torch.stack([numbers.mean(), numbers.std(correction=0), numbers.min(), numbers.max()])
        for key, numbers in _trained(parameters)
    }
    # All values at once, to wait for a GPU only once.
    values = torch.stack(list(found.values())).tolist() if found else []
    return {
        f"{key}/{name}": number
        for key, numbers in zip(found, values, strict=True)
        if np.isfinite(numbers).all()
        for name, number in zip(NAMES, numbers, strict=True)
    }


@torch.no_grad()
def parameter_histograms(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, BinCounts]:
    """Histograms of the elements of each trained parameter and of its gradient.

    Returns:
        Histograms by `parameters/NAME` and `gradients/NAME`, with equal bins from the lowest to the highest value. If
        all values are equal, the bins are from 0.5 below to 0.5 above it, as in numpy. A tensor with a value that is
        not finite is left out.
    """
    histograms = {}
    for key, numbers in _trained(parameters):
        low, high = torch.stack([numbers.min(), numbers.max()]).tolist()
        if not np.isfinite([low, high]).all():
            continue
        low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
        counts = torch.histc(numbers, BINS, low, high).cpu().numpy().astype(np.int64)
        histograms[key] = (counts, np.linspace(low, high, BINS + 1))
    return histograms


def _trained(parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Yields key and float values of each trained parameter and of its gradient."""
    for name, parameter in parameters:
        if parameter.requires_grad:
            yield f"parameters/{name}", parameter.detach().float()
            if parameter.grad is not None:
                yield f"gradients/{name}", parameter.grad.detach().float()
