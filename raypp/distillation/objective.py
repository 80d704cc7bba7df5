"""The training loss as a weighted sum of terms: the hard loss on labels, the soft and the logits loss on the teacher's
logits, the hidden and the cosine loss on its hidden states.

Each term is summed over a share's rows and divided by the term's count in the whole global batch. The count is known
before the forward pass, so a global batch gives the same gradient however it is cut into shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypp.config import DistillationSettings
from raypp.data.examples import Counts
from raypp.distillation.teacher import OnlineTeacher
from raypp.kinds import TaskKind


@dataclass(frozen=True)
class Objective:
    """`objective(model, batch)` gives the sum of each term over the rows of a share."""

    weights: Mapping[str, float]
    """Weight of each term; a term of weight 0 is not computed."""
    kind: TaskKind
    """The task's kind, which compares outputs with labels and with the teacher's logits."""
    temperature: float = 1.0
    teacher: OnlineTeacher | None = None
    """The teacher that runs during training; None if its stored logits are enough."""

    @classmethod
    def build(
        cls, kind: TaskKind, distillation: DistillationSettings | None, teacher: OnlineTeacher | None
    ) -> Objective:
        """The objective of a run; without distillation, the hard loss alone."""
        if distillation is None:
            return cls({"hard_loss": 1.0}, kind)
        weights = {
            "hard_loss": distillation.hard_weight,
            "soft_loss": distillation.soft_weight,
            "logits_loss": distillation.logits_weight,
            "hidden_loss": distillation.hidden_weight,
            "cosine_loss": distillation.cosine_weight,
        }
        weights = {name: weight for name, weight in weights.items() if weight}
        online = {"hidden_loss", "cosine_loss"} & weights.keys()
        compared = set() if teacher is None else set(teacher.terms)
        assert online == compared, "the online teacher compares the hidden states"
        return cls(weights, kind, distillation.temperature, teacher)

    @property
    def projections(self) -> nn.ModuleDict:
        """Modules that are trained with the model but not delivered with it; often none."""
        return nn.ModuleDict() if self.teacher is None else self.teacher.projections

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of a share, each summed over its rows: float32 scalars with gradient.

        Args:
            model: a model of the task's kind.
            batch: from `Examples.collate`: the model's inputs, `labels` and, for the soft and the logits loss,
                `teacher_logits`; with an online teacher, also the result of `OnlineTeacher.observe`.
        """
        asked = {"output_hidden_states": True} if self.teacher is not None and self.teacher.terms else {}
        outputs = self.kind.run(model, batch, **asked)
        answers = self.kind.outputs(outputs, batch)
        terms = {}
        if "hard_loss" in self.weights:
            terms["hard_loss"] = self.kind.hard_loss_sum(answers, batch)
        if "soft_loss" in self.weights:
            terms["soft_loss"] = self.kind.soft_loss_sum(answers, batch, self.temperature)
        if "logits_loss" in self.weights:
            terms["logits_loss"] = self.kind.logits_loss_sum(answers, batch)
        if asked:
            assert self.teacher is not None
            terms |= self.teacher.losses(outputs.hidden_states, batch)
        return terms

    def counts(self, counts: Counts) -> dict[str, int]:
        """The divisor of each term's sum over a global batch; at least 1, in case there is nothing to sum.

        Args:
            counts: the counts of the whole global batch.
        """
        of_term = {"hard_loss": counts.targets, "soft_loss": counts.outputs, "logits_loss": counts.outputs}
        return {name: max(1, of_term.get(name, counts.rows)) for name in self.weights}

    def loss(self, terms: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """A share's part of the global batch's mean loss.

        Args:
            terms: the share's sums, from `__call__`.
            counts: the divisors, from `counts`.
        """
        parts = [self.weights[name] * value / counts[name] for name, value in terms.items()]
        return torch.stack(parts).sum()
