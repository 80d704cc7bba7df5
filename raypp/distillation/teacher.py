"""The online teacher: it runs during training, for losses that its stored logits are not enough for.

It gets the student's inputs, so both need the same tokenizer. A list of pairs says which layer of the student follows
which layer of the teacher. Layers are numbered as in Hugging Face's `hidden_states`: 0 is the output of the embeddings,
and m the output of layer m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from raypp.config import DistillationSettings
from raypp.distillation.losses import hidden_cosine_sum, hidden_mse_sum
from raypp.errors import ConfigError
from raypp.kinds import TaskKind
from raypp.seeds import named_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LayerPairs = tuple[tuple[int, int], ...]
DISTANCES = {"mse": hidden_mse_sum, "cosine": hidden_cosine_sum}


@dataclass(frozen=True)
class HiddenStateTerm:
    """A loss term on hidden states: the layers that are compared, and the distance."""

    pairs: LayerPairs
    """(layer of the student, layer of the teacher) of each comparison."""
    kind: Literal["mse", "cosine"]


def even_pairs(student_layers: int, teacher_layers: int) -> LayerPairs:
    """Pairs each layer m = 1 … S of the student with layer ceil(m T / S) of the teacher's T layers.

    The last layers are paired, and the others evenly, as in TinyBERT (Jiao et al. 2020, section 3.1), where S divides
    T.
    """
    return tuple((layer, -(-layer * teacher_layers // student_layers)) for layer in range(1, student_layers + 1))


def hidden_state_terms(settings: DistillationSettings, student: Any, teacher: Any) -> dict[str, HiddenStateTerm]:
    """The terms on hidden states that the settings ask for, by name.

    Args:
        settings: the weights and pairs.
        student: the student's `transformers` configuration.
        teacher: the teacher's.

    Raises:
        ConfigError: a pair names a layer that a model does not have, or a model has both encoder and decoder.
    """
    if not (settings.hidden_weight or settings.cosine_weight):
        return {}
    field = "hidden_weight" if settings.hidden_weight else "cosine_weight"
    problems = [
        f"distillation.{field}: {getattr(settings, field):g} compares encoders, but {name} is a "
        f"{config.model_type} with encoder and decoder; allowed: 0"
        for name, config in (("student.model", student), ("the teacher", teacher))
        if config.is_encoder_decoder
    ]
    counts = student.num_hidden_layers, teacher.num_hidden_layers
    for pair in settings.hidden_layers or ():
        for role, layer, count in zip(("student", "teacher"), pair, counts, strict=True):
            if layer > count:
                problems.append(
                    f"distillation.hidden_layers: {list(pair)} names layer {layer} of the {role}, which has {count}; "
                    f"allowed: 0 (the embeddings) to {count}"
                )
    if problems:
        raise ConfigError(problems)
    terms = {}
    if settings.hidden_weight:
        terms["hidden_loss"] = HiddenStateTerm(settings.hidden_layers or even_pairs(*counts), settings.hidden_kind)
    if settings.cosine_weight:
        terms["cosine_loss"] = HiddenStateTerm((counts,), "cosine")
    return terms


class OnlineTeacher:
    """A frozen teacher, with the terms on hidden states and the projections that they learn."""

    def __init__(
        self,
        model: PreTrainedModel,
        kind: TaskKind,
        terms: Mapping[str, HiddenStateTerm],
        student_width: int,
        seed: int,
        device: torch.device,
        *,
        with_logits: bool = False,
    ) -> None:
        """
        Args:
            model: a loaded teacher, which is put into evaluation mode and frozen.
            kind: the task's kind.
            terms: from `hidden_state_terms`.
            student_width: size of the student's hidden states.
            seed: seed of the projections' initial weights. Each projection's own seed follows from it and the pair.
            device: the device for teacher and projections.
            with_logits: whether `observe` also gives the logits, because the store has none.
        """
        self.model = model.to(device).eval().requires_grad_(False)
        self.kind, self.terms, self.with_logits = kind, terms, with_logits
        self.projections = nn.ModuleDict()
        """By pair, linear maps from the student's width to the teacher's; empty if both are equal."""
        teacher_width = model.config.hidden_size
        if student_width != teacher_width:
            for pair in dict.fromkeys(pair for term in terms.values() for pair in term.pairs):
                torch.manual_seed(named_seed(seed, f"projection {pair}"))
                self.projections[_name(pair)] = nn.Linear(student_width, teacher_width)
            self.projections.to(device)  # made on the CPU, so they are the same on every device

    @torch.no_grad()  # not inference mode, because the student's backward pass may keep a teacher's state
    def observe(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs the teacher on a batch.

        Returns:
            Entries to add to the batch: the hidden states of the compared layers, [rows, length, width] each, under the
            names that `losses` reads; with `with_logits`, also `teacher_logits`, shaped as `TaskKind.outputs`.
        """
        asked = {"output_hidden_states": True} if self.terms else {}
        output = self.kind.run(self.model, batch, **asked)
        observed = {
            _state_name(layer): output.hidden_states[layer] for term in self.terms.values() for _, layer in term.pairs
        }
        return observed | ({"teacher_logits": self.kind.outputs(output, batch)} if self.with_logits else {})

    def losses(self, states: Sequence[Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms by name: for each, the mean over its pairs of the distance between both models' states, summed over
        rows; float32 scalars.

        Args:
            states: the student's hidden states, [rows, length, width] each (multiple choice: [rows * choices, …]).
            batch: `attention_mask`, [rows, length] or [rows, sequences, length], and the entries from `observe`.
        """
        mask = batch["attention_mask"].flatten(0, -2)  # a row of multiple choice has several sequences
        losses = {}
        for name, term in self.terms.items():
            distances = [
                DISTANCES[term.kind](self._projected(states[pair[0]], pair), batch[_state_name(pair[1])], mask)
                for pair in term.pairs
            ]
            losses[name] = torch.stack(distances).mean() * (len(batch["attention_mask"]) / len(mask))
        return losses

    def _projected(self, state: Tensor, pair: tuple[int, int]) -> Tensor:
        if not self.projections:
            return state
        with torch.autocast(state.device.type, enabled=False):
            projected: Tensor = self.projections[_name(pair)](state.float())
            return projected


def _name(pair: tuple[int, int]) -> str:
    return f"{pair[0]}_{pair[1]}"


def _state_name(layer: int) -> str:
    return f"teacher_state_{layer}"
