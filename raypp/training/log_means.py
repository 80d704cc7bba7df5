"""The means that a run logs: sums over all workers in each step, then means over the steps since the last log line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepSums:
    """The numbers of one step that are summed over all workers, in addition to the gradients."""

    terms: tuple[float, ...]
    """Sum of each term of the loss over the global batch."""
    tokens: int
    """Tokens without padding."""
    computed_tokens: int
    """Tokens with padding."""
    interrupted: bool
    """Whether at least one worker is asked to stop."""

    @staticmethod
    def pack(terms: Tensor, tokens: int, computed_tokens: int, interrupted: bool) -> Tensor:
        """One worker's numbers as a tensor that can be summed: float64 [terms + 3], on the device of `terms`, for which
        the host does not wait."""
        # Each number is filled in on the device, because a copy from the host would wait for a GPU's work.
        counted = [terms.new_full((1,), number) for number in (tokens, computed_tokens, interrupted)]
        return torch.cat([terms, *counted])

    @classmethod
    def unpack(cls, summed: Tensor) -> StepSums:
        """The step's sums, from the sum of all workers' tensors. Waits for a GPU."""
        *terms, tokens, computed_tokens, interrupted = summed.tolist()
        return cls(tuple(terms), int(tokens), int(computed_tokens), bool(interrupted))


@dataclass
class LogMeans:
    """Sums since the last log line."""

    terms: tuple[str, ...]
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    skipped_steps: int = 0
    norms: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    computed_tokens: int = 0

    def add(self, sums: StepSums, counts: Mapping[str, int], norm: float, seconds: float) -> None:
        """Adds one step. Loss and norm of a step that float16's scaler skipped are meaningless and left out.

        Args:
            counts: what each term's sum is divided by.
            norm: of the gradients, before clipping.
        """
        self.steps += 1
        self.seconds += seconds
        self.tokens += sums.tokens
        self.computed_tokens += sums.computed_tokens
        if not (math.isfinite(norm) and all(map(math.isfinite, sums.terms))):
            self.skipped_steps += 1
            return
        for name, value in zip(self.terms, sums.terms, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + counts[name]
        self.norms += norm

    def values(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the steps since the last log line; `weights` are those of the loss terms."""
        means = {"perf/step_seconds": self.seconds / self.steps}
        if self.skipped_steps:
            means["train/skipped_steps"] = self.skipped_steps
        if taken := self.steps - self.skipped_steps:
            means |= {f"train/{name}": value / self.counts[name] for name, value in self.sums.items()}
            means["train/loss"] = sum(weights[name] * means[f"train/{name}"] for name in self.terms)
            means["train/gradient_norm"] = self.norms / taken
        return means
