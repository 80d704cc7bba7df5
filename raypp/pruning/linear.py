"""`MaskedLinear`, a linear layer whose weight is multiplied by a mask, and the choice of a model's layers to mask."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from raypp.config import LayerRule
from raypp.errors import ConfigError
from raypp.pruning import masked_product

# Modules with these parts in their dotted names are never pruned and do not count as encoder: embeddings and their
# projections (ELECTRA's embeddings_project, ALBERT's embedding_hidden_mapping_in), pooler and head. The heads of
# Hugging Face models are outside the base encoder anyway; these names are for the user's own modules.
_NOT_ENCODER = re.compile(
    r"(^|\.)([^.]*embed[^.]*|pooler|pre_classifier|classifier|head|lm_head|score|qa_outputs)(\.|$)"
)


class _ApplyMask(torch.autograd.Function):
    """weight * mask (already computed), with a gradient for the scores that the mask comes from.

    Straight-through (Bengio et al. 2013; Sanh et al. 2020, equation 4): d loss / d scores = d loss / d masked * weight,
    also where the mask is 0. With `gate_slope` = d mask / d scores (hard concrete) the chain rule holds exactly.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor | None, mask: Tensor, gate_slope: Tensor | None, product: Tensor
    ) -> Tensor:
        needs_weight, needs_scores = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            mask if needs_weight else None, weight if needs_scores else None, gate_slope if needs_scores else None
        )
        ctx.dtypes = weight.dtype, weight.dtype if scores is None else scores.dtype
        return product.view_as(product)

    @staticmethod
    @once_differentiable  # the kernels record no graph, so a second derivative would be wrong without notice
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        mask, weight, gate_slope = ctx.saved_tensors
        for_weight, for_scores = masked_product.gradients(gradient, weight, mask, gate_slope, ctx.dtypes)
        return for_weight, for_scores, None, None, None


class MaskedLinear(nn.Module):
    """`nn.Linear` with a mask on its weight.

    `weight` (out, in), `bias` (out) or None, and `mask_scores` (out, in), None for a method without scores, have the
    original's names, so that its checkpoints load. `mask` (out, in) is bool, or float for hard concrete gates. It is
    not saved, because it follows from the scores (or weights): `Pruner.refresh` sets it once per optimizer step, so all
    micro-batches and the evaluation use the same mask. After a state dict is loaded, it is out of date until then. The
    product of weight and mask is kept while neither changes.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask_scores: nn.Parameter | None
    mask: Tensor
    gate_slope: Tensor | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, mask_scores: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)
        self.register_parameter("mask_scores", mask_scores)
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool), persistent=False)
        self.register_buffer("gate_slope", None, persistent=False)
        self._product: Tensor | None = None
        self._product_of: tuple[Any, ...] | None = None
        self._product_mask: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the product, so that a copy of the layer computes its own."""
        return {**self.__dict__, "_product": None, "_product_of": None, "_product_mask": None}

    @classmethod
    def from_linear(cls, linear: nn.Linear, scores: Tensor | None = None) -> MaskedLinear:
        """A masked layer with a linear layer's own parameters (no copies). All weights are kept until a mask is set.

        Args:
            linear: the layer to mask.
            scores: initial scores, shaped as its weight; None for a method without scores.

        Raises:
            ValueError: the scores have another shape than the weight.
        """
        if scores is not None and scores.shape != linear.weight.shape:
            raise ValueError(f"scores are {tuple(scores.shape)}, but the weight is {tuple(linear.weight.shape)}")
        parameter = None if scores is None else nn.Parameter(scores.to(linear.weight.device))
        # torch declares both as Tensor
        weight, bias = cast(nn.Parameter, linear.weight), cast("nn.Parameter | None", linear.bias)
        return cls(weight, bias, parameter).train(linear.training)

    def set_gates(self, gates: Tensor, slope: Tensor, kept: Tensor | None = None) -> None:
        """Makes the mask hard concrete gates of the scores (see `gates.py`), for one optimizer step.

        The gates' derivatives are kept with them, so that no micro-batch's backward pass needs a graph to the scores.

        Args:
            gates: float, shaped as the scores; changed in place if `kept` is given.
            slope: d gates / d scores.
            kept: bool, shaped as the scores. All other gates are closed, but their scores still learn as if they were
                open.
        """
        self.mask, self.gate_slope = gates if kept is None else gates.mul_(kept), slope

    def masked_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """weight * mask, (out, in), differentiable in weight and scores.

        It is computed again when torch reports a change of the weight. Changes by fused optimizers and through `.data`
        are not reported; they take effect when the mask is set again (`Pruner.refresh`).

        Args:
            dtype: type of the result; None for the weight's.
        """
        weight = self.weight
        dtype = dtype or weight.dtype
        state = None if weight.is_inference() else (dtype, weight.dtype, weight.data_ptr(), weight._version)
        if state is None or state != self._product_of or self.mask is not self._product_mask:
            self._product, self._product_of, self._product_mask = self._multiplied(dtype), state, self.mask
        masked = _ApplyMask.apply(  # type: ignore[no-untyped-call]
            self.weight, self.mask_scores, self.mask, self.gate_slope, self._product
        )
        return cast(Tensor, masked)

    @torch.inference_mode(False)  # a product that an evaluation computes is used by training later
    @torch.no_grad()
    def _multiplied(self, dtype: torch.dtype) -> Tensor:
        product = self._product
        # The old product's memory is reused, because new memory would cost more than the multiplication.
        if product is None or (product.dtype, product.device) != (dtype, self.weight.device):
            product = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        return masked_product.multiply(self.weight, self.mask, product)

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return functional.linear(inputs, self.masked_weight(self._autocast_dtype()), self.bias)

    def _autocast_dtype(self) -> torch.dtype | None:
        """The type to which autocast would convert the product at every forward pass; None without autocast."""
        device, is_double = self.weight.device.type, self.weight.dtype == torch.float64  # autocast does not convert it
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and not is_double else None

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A plain layer that computes the same. The weights that the mask removes are exactly 0.0."""
        # On the meta device, the weights that are replaced next take no random numbers and no memory.
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        product = masked_product.multiply(self.weight, self.mask, torch.empty_like(self.weight))
        folded = product.masked_fill_(self.mask == 0, 0.0)  # a product may be -0.0
        linear.weight = nn.Parameter(folded, requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        scores = "no scores" if self.mask_scores is None else "scores"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {scores}"
        )


def encoder_of(model: nn.Module) -> nn.Module:
    """The base encoder of a Hugging Face model (its `base_model`); any other module itself."""
    base = getattr(model, "base_model", None)
    return base if isinstance(base, nn.Module) else model


def is_encoder_name(name: str) -> bool:
    """Whether the module with this dotted name in the base encoder is neither embeddings nor pooler nor head."""
    return _NOT_ENCODER.search(name) is None


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The plain linear layers that may be pruned, by name inside the encoder. A shared layer is there once.

    Only layers of the class `nn.Linear` itself may be: a subclass computes something else or is never called (as in
    torch's MultiheadAttention).
    """
    modules = encoder_of(model).named_modules()
    return {name: module for name, module in modules if type(module) is nn.Linear and is_encoder_name(name)}


def masked_layers(model: nn.Module) -> dict[str, MaskedLinear]:
    """The masked layers, by name inside the encoder. A shared layer is there once."""
    return {name: module for name, module in encoder_of(model).named_modules() if isinstance(module, MaskedLinear)}


def all_linear_layers(model: nn.Module) -> dict[str, nn.Linear | MaskedLinear]:
    """The linear layers that may be pruned and those that are masked, by name inside the encoder."""
    return {**linear_layers(model), **masked_layers(model)}


def select_layers(model: nn.Module, rule: LayerRule) -> dict[str, nn.Linear]:
    """The linear layers that a rule prunes, by name inside the encoder.

    Args:
        model: may be on the meta device, because no weights are read.
        rule: `pruning.layers`.

    Raises:
        ConfigError: a pattern is not a regular expression or matches no layer, the rule leaves no layer, or a layer is
            in torch's fused TransformerEncoderLayer.
    """
    available = linear_layers(model)
    if not available:
        raise ConfigError(f"pruning.layers: the encoder of {type(model).__name__} has no linear layer to prune")
    matched: dict[str, set[str]] = {"include": set(), "exclude": set()}
    problems: list[str] = []
    for field, patterns in (("include", rule.include), ("exclude", rule.exclude)):
        for pattern in patterns:
            try:
                found = {name for name in available if re.search(pattern, name)}
            except re.error as error:
                problems.append(f"pruning.layers.{field}: {pattern!r} is not a regular expression: {error}")
                continue
            if not found:
                problems.append(
                    f"pruning.layers.{field}: {pattern!r} matches no layer; the layers are {_summary(available)}"
                )
            matched[field] |= found
    chosen = {name: available[name] for name in available if name in matched["include"] - matched["exclude"]}
    if not problems and not chosen:
        problems.append(
            f"pruning.layers: include={list(rule.include)} and exclude={list(rule.exclude)} leave no layer; "
            f"the layers are {_summary(available)}"
        )
    if problems:
        raise ConfigError(problems)
    _refuse_fused(model, chosen)
    return chosen


def _summary(names: Mapping[str, object]) -> str:
    """Layer names with stars for numbers, and how many there are: `encoder.layer.*.output.dense (12)`."""
    groups = list(Counter(re.sub(r"(?<=\.)\d+(?=\.)|^\d+|\d+$", "*", name) for name in names).items())
    shown = ", ".join(f"{name} ({count})" for name, count in groups[:20])
    return shown + (f" and {len(groups) - 20} more kinds" if len(groups) > 20 else "")


def _refuse_fused(model: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
    """Refuses layers in torch's own TransformerEncoderLayer, which reads their weights without calling them, so that a
    mask would have no effect.

    Raises:
        ConfigError: one of the chosen layers is in such a module.
    """
    layers = set(chosen.values())
    for name, module in encoder_of(model).named_modules():
        if isinstance(module, nn.TransformerEncoderLayer) and layers.intersection(module.modules()):
            raise ConfigError(
                f"pruning.layers: {name or 'the model'} is torch's fused TransformerEncoderLayer, in which masks have "
                "no effect; exclude its layers"
            )
