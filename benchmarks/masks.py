"""Refreshing all masks of BERT-base, 85 million scores in 72 matrices, against one torch.sort per matrix, on the CPU.

The scores change as in training with a learning rate of 1e-2, and the density falls along the cubic schedule.
"""

from __future__ import annotations

import time

import torch
from workload import median, report

from raypp.pruning.level import logit
from raypp.pruning.masks import Selection, ThresholdHint, keep_above, keep_largest, kept_count

LAYERS, HIDDEN, INTERMEDIATE = 12, 768, 3072
SHAPES = ([(HIDDEN, HIDDEN)] * 4 + [(INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]) * LAYERS
STEPS = 8
TARGET = "target <= 0.05"


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(shape, generator=generator) * 0.1 for shape in SHAPES]
    seeds = list(range(len(scores)))
    hints, together = [ThresholdHint() for _ in scores], ThresholdHint()
    seconds: dict[str, list[float]] = {"topk": [], "topk, global": [], "sigmoid_threshold": [], "sort": []}
    for step in range(STEPS):
        for matrix in scores:
            matrix += 1e-2 * torch.randn(matrix.shape, generator=generator).clamp(-1, 1)
        density = 0.15 + 0.85 * (1 - (100 + step) / 400) ** 3

        def local(density: float = density) -> None:
            counts = [kept_count(density, matrix.numel()) for matrix in scores]
            columns = zip(scores, counts, seeds, hints, strict=True)
            keep_largest([Selection([matrix], count, [seed], hint) for matrix, count, seed, hint in columns])

        def globally(density: float = density) -> None:
            count = kept_count(density, sum(matrix.numel() for matrix in scores))
            keep_largest([Selection(scores, count, seeds, together)])

        def above(step: int = step) -> None:
            keep_above(scores, logit(0.1 * step / STEPS), [1] * len(scores), seeds)

        def sort(density: float = density) -> None:
            for matrix in scores:
                flat = matrix.flatten()
                order = torch.sort(flat, descending=True).indices
                torch.zeros_like(flat)[order[: kept_count(density, flat.numel())]] = 1.0

        # Sorting takes so long that two steps of it are enough.
        for name, refresh in {
            "topk": local,
            "topk, global": globally,
            "sigmoid_threshold": above,
            "sort": sort,
        }.items():
            if name == "sort" and step >= 2:
                continue
            began = time.perf_counter()
            refresh()
            seconds[name].append(time.perf_counter() - began)
    for name in ("topk", "topk, global", "sigmoid_threshold"):
        # In the first two steps a selection learns where its threshold is and how fast it moves.
        report(f"mask refresh, 85M scores, {name}", median(seconds[name][2:]), median(seconds["sort"]), "s", TARGET)


if __name__ == "__main__":
    main()
