"""Statistics of every parameter and its gradient, as the original distiller and masked_run scripts logged them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NAMES = ("mean", "std", "min", "max")


@torch.no_grad()
def parameter_statistics(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """Mean, standard deviation (of the population), minimum and maximum of each trained parameter, and of its gradient.

    Returns:
        By `parameters/NAME/mean` and so on, and `gradients/NAME/mean` and so on where there is a gradient.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        for section, value in (("parameters", parameter), ("gradients", parameter.grad)):
            if value is not None:
                numbers = value.detach().float()
                found[f"{section}/{name}"] = torch.stack(
                    [numbers.mean(), numbers.std(correction=0), numbers.min(), numbers.max()]
                )
    # All together: a GPU is waited for once.
    values = torch.stack(list(found.values())).tolist() if found else []
    return {
        f"{key}/{name}": number
        for key, numbers in zip(found, values, strict=True)
        for name, number in zip(NAMES, numbers, strict=True)
    }
