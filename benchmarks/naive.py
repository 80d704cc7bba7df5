"""An independent, straightforward fine-pruning on the CPU: the reference of the parity tests and of the benchmarks.

It is written from the paper and shares no code with raypp. It sorts every matrix at every forward pass, pads batches to
the maximal length, runs the teacher at every step, and uses plain autograd and an optimizer that is not fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DENSE = ("attention.output.dense", "intermediate.dense", "output.dense")


class StraightThrough(torch.autograd.Function):
    """The forward pass returns the mask; the backward pass gives the scores the mask's gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SortedLinear(nn.Module):
    """A linear layer that sorts all its scores at every call."""

    def __init__(self, linear: nn.Linear, method: str, scores: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.method = linear.weight, linear.bias, method
        self.mask_scores = nn.Parameter(scores.clone())
        self.value = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.method == "topk":
            count = int(self.value * self.weight.numel() + 1e-6)
            order = torch.sort(self.mask_scores.detach().flatten(), descending=True, stable=True).indices
            mask = torch.zeros(self.weight.numel())
            mask[order[:count]] = 1.0
            mask = mask.view_as(self.weight)
        else:
            # In float64: in float32 many scores near the threshold have the same sigmoid.
            mask = (torch.sigmoid(self.mask_scores.detach().double()) > self.value).float()
        gate = StraightThrough.apply(self.mask_scores, mask)  # type: ignore[no-untyped-call]
        return F.linear(inputs, self.weight * gate, self.bias)


def cubic(step: int, total: int, warmup: int, initial: float, final: float, before: int, after: int) -> float:
    """The paper's schedule."""
    if step <= before * warmup:
        return initial
    if step > total - after * warmup:
        return final
    left = 1 - (step - before * warmup) / (total - (before + after) * warmup)
    return final + (initial - final) * left**3


def fine_prune(
    student: Path,
    teacher: Path | None,
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[int],
    batches: Iterable[Sequence[int]],
    *,
    method: str,
    total: int,
    warmup: int,
    initial: float,
    final: float,
    initial_warmup: int,
    final_warmup: int,
    learning_rate: float,
    mask_learning_rate: float,
    scores_of: Callable[[str, torch.Size], Tensor],
    adam_epsilon: float,
    final_lambda: float = 0.0,
    soft_weight: float = 0.9,
    temperature: float = 2.0,
    seed: int = 42,
    max_length: int,
) -> tuple[list[float], nn.Module]:
    """Trains on `batches` (the rows of each step). Returns the loss of every step, without the penalty, and the masked
    model."""
    tokenizer = AutoTokenizer.from_pretrained(str(student))
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(str(student), num_labels=2, dtype=torch.float32)
    followed = None
    if teacher is not None:
        followed = AutoModelForSequenceClassification.from_pretrained(str(teacher), dtype=torch.float32).eval()
    model.bert.embeddings.requires_grad_(False)
    pruned = []
    for number, layer in enumerate(model.bert.encoder.layer):
        for path in (*(f"attention.self.{part}" for part in ("query", "key", "value")), *DENSE):
            *parents, name = path.split(".")
            parent = layer
            for step_down in parents:
                parent = getattr(parent, step_down)
            linear = getattr(parent, name)
            initial_scores = scores_of(f"encoder.layer.{number}.{path}", linear.weight.shape)
            setattr(parent, name, SortedLinear(linear, method, initial_scores))
            pruned.append(getattr(parent, name))
    scores = [module.mask_scores for module in pruned]
    others = [p for n, p in model.named_parameters() if "mask_scores" not in n and p.requires_grad]
    groups = [{"params": others, "lr": learning_rate}, {"params": scores, "lr": mask_learning_rate}]
    optimizer = torch.optim.AdamW(groups, eps=adam_epsilon, weight_decay=0.0, foreach=False, fused=False)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / warmup if step < warmup else (total - step) / (total - warmup)
    )
    losses = []
    model.train()
    for step, rows in enumerate(batches):
        value = cubic(step, total, warmup, initial, final, initial_warmup, final_warmup)
        for module in pruned:
            module.value = value
        columns = [list(column) for column in zip(*(texts[row] for row in rows), strict=True)]
        inputs = tokenizer(*columns, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        logits = model(**inputs).logits
        loss = F.cross_entropy(logits, torch.tensor([labels[row] for row in rows]))
        if followed is not None:
            with torch.no_grad():
                wanted = followed(**inputs).logits
            soft = F.kl_div(
                F.log_softmax(logits / temperature, dim=-1),
                F.softmax(wanted / temperature, dim=-1),
                reduction="batchmean",
            )
            loss = soft_weight * soft * temperature**2 + (1 - soft_weight) * loss
        losses.append(float(loss.detach()))
        if final_lambda:
            mean = torch.stack([torch.sigmoid(module.mask_scores).mean() for module in pruned]).mean()
            loss = loss + final_lambda * (value / final) * mean
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*others, *scores], 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    return losses, model
