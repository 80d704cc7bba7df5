"""The loss of fine-pruning as terms: the hard loss on labels, the soft and the logits loss on the teacher's logits, the
hidden and the cosine loss on its hidden states.

A term is a sum over a share's rows. It is divided by the term's count over the whole global batch, which is known
before the forward pass, so that a global batch gives the same gradient however it is cut.
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
    """Of the task: how labels and the teacher's logits are compared with outputs."""
    temperature: float = 1.0
    teacher: OnlineTeacher | None = None
    """Runs beside the student where its stored logits are not enough."""

    @classmethod
    def build(
        cls, kind: TaskKind, distillation: DistillationSettings | None, teacher: OnlineTeacher | None
    ) -> Objective:
        """Labels alone (no distillation), or labels and teacher, weighed as the settings say."""
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
        assert online == compared, "who compares states is beside the student"
        return cls(weights, kind, distillation.temperature, teacher)

    @property
    def projections(self) -> nn.ModuleDict:
        """What is learned beside the model and not delivered with it; often nothing."""
        return nn.ModuleDict() if self.teacher is None else self.teacher.projections

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the share's rows, float32 scalars, with gradient.

        Args:
            model: one of the task's kind; for the hidden loss it gives `.hidden_states`, too.
            batch: the model's inputs (what else it holds is passed over), `labels` and, for the soft loss,
                `teacher_logits`; for the hidden loss, what the online teacher observed on it.
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
        """What the sum of each term over a global batch is divided by; at least 1, where it is a sum over nothing."""
        of_term = {"hard_loss": counts.targets, "soft_loss": counts.outputs, "logits_loss": counts.outputs}
        return {name: max(1, of_term.get(name, counts.rows)) for name in self.weights}

    def loss(self, terms: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """The share's part of the global batch's mean loss; the counts are the global batch's, from `counts`."""
        parts = [self.weights[name] * value / counts[name] for name, value in terms.items()]
        return torch.stack(parts).sum()
