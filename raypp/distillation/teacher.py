"""The online teacher: it runs beside the student, for losses that its stored logits cannot give.

It sees the student's own inputs, so both have the same tokenizer. Which of the student's layers follows which of the
teacher's is a list of pairs, numbered as in Hugging Face's `hidden_states`: 0 is what the embeddings give, m what layer
m gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from raypp.config import DistillationSettings, TeacherSettings
from raypp.distillation.losses import hidden_cosine_sum, hidden_mse_sum
from raypp.errors import ConfigError
from raypp.export.huggingface import load_saved
from raypp.kinds import TaskKind
from raypp.models import model_inputs, resolve_model
from raypp.pruning.masks import named_seed
from raypp.storage import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LayerPairs = tuple[tuple[int, int], ...]
DISTANCES = {"mse": hidden_mse_sum, "cosine": hidden_cosine_sum}


def even_pairs(student_layers: int, teacher_layers: int) -> LayerPairs:
    """Layer m = 1 … S of the student with layer ceil(m T / S) of the teacher's T: last with last, and evenly below, as
    in TinyBERT (Jiao et al. 2020, section 3.1), whose S divides T."""
    return tuple((layer, -(-layer * teacher_layers // student_layers)) for layer in range(1, student_layers + 1))


def layer_pairs(settings: DistillationSettings, student: Any, teacher: Any) -> LayerPairs:
    """The pairs of layers that are compared, from the `transformers` configurations of both models.

    Raises:
        ConfigError: a pair names a layer that its model lacks, or a model has no single stack of layers.
    """
    problems = [
        f"distillation.hidden_weight: {settings.hidden_weight:g} compares encoders, but {field} is a "
        f"{config.model_type} with encoder and decoder; allowed: 0"
        for field, config in (("student.model", student), ("the teacher", teacher))
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
    return settings.hidden_layers or even_pairs(*counts)


def load_teacher(settings: TeacherSettings, trained: Location | None, kind: TaskKind) -> PreTrainedModel:
    """The teacher in `trained`, the model folder of one that was trained first, or (None) the given one."""
    if trained is None:
        assert settings.model is not None, "a teacher that is not trained first is given"
        trained = Location.of(resolve_model(settings.model, settings.revision, "teacher.model"))
    model: PreTrainedModel = load_saved(trained, kind)
    return model


class OnlineTeacher:
    """A frozen teacher, the pairs of layers that are compared, and what is learned to compare them."""

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: LayerPairs,
        kind: Literal["mse", "cosine"],
        student_width: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Takes a loaded teacher over.

        Args:
            model: evaluates from now on, and is not trained.
            pairs: from `layer_pairs`.
            kind: how states are compared.
            student_width: of the student's hidden states.
            seed: of the projections' initial weights; each one's follow from it and the pair.
            device: of teacher and projections.
        """
        self.model = model.to(device).eval().requires_grad_(False)
        self.pairs = pairs
        self.distance = DISTANCES[kind]
        self.projections = nn.ModuleDict()
        """By pair, from the student's width to the teacher's; empty where both are the same."""
        teacher_width = model.config.hidden_size
        if student_width != teacher_width:
            for pair in pairs:
                torch.manual_seed(named_seed(seed, f"projection {pair}"))
                self.projections[_name(pair)] = nn.Linear(student_width, teacher_width)
            self.projections.to(device)  # made on the CPU, so the same for every device

    @torch.no_grad()  # not inference mode: the student's backward pass may keep a teacher's state
    def observe(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's hidden states [rows, length, width] on a batch, by the names under which `hidden_loss` finds
        them in the batch; only of the layers that are compared."""
        states = self.model(**model_inputs(self.model, batch), output_hidden_states=True).hidden_states
        return {_state_name(layer): states[layer] for _, layer in self.pairs}

    def hidden_loss(self, states: Sequence[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The mean over pairs of the distance between both models' states, summed over rows.

        Args:
            states: the student's, [rows, length, width] each.
            batch: with `attention_mask` [rows, length] or [rows, sequences, length] and what `observe` gave.
        """
        mask = batch["attention_mask"].flatten(0, -2)  # of every sequence: a multiple choice has several in a row
        distances = [
            self.distance(self._projected(states[pair[0]], pair), batch[_state_name(pair[1])], mask)
            for pair in self.pairs
        ]
        return torch.stack(distances).mean() * (len(batch["attention_mask"]) / len(mask))

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
