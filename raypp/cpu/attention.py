"""Attention for training on a CPU.

torch's own (`scaled_dot_product_attention`) is slow there. With dropout it draws random numbers on one thread and keeps
three tensors of all pairs of tokens. Without dropout, in bfloat16, the backward pass of its fused kernel takes two to
ten times as long as the matrix products. The attention here keeps only the probabilities, and uses `drop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raypp.cpu.dropout import draw_seed, drop
from raypp.models.loading import quiet_loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "raypp_cpu"
LONGEST = 512  # tokens, without dropout; beyond it torch's needs much less memory


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Makes a model that uses torch's attention use this one in training.

    A model that computes its attention itself, or whose configuration names another one, is left as it is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
    with quiet_loading():  # some families warn that it cannot be set
        model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it. It calls torch's where that is faster, or alone can do it.

    Args:
        query: [batch, heads, tokens, features].
        key: [batch, heads, others, features], as is `value`.
        attention_mask: [batch, 1 or heads, tokens, others], True where a token sees another; None: a token sees all
            others or, if the module is causal, those before it.
        dropout: probability that an attention weight is dropped.
        scaling: factor of the products; None: 1 / sqrt(features).
        others: further arguments that some families pass.

    Returns:
        [batch, tokens, heads, features], and None in place of the attention weights.
    """
    is_causal = others.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if module.training and query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    takes = (
        module.training
        and query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.shape[1] == key.shape[1]
        and (not is_causal if attention_mask is None else attention_mask.dtype == torch.bool)
        and not {name for name in ("position_bias", "softcap", "cache") if others.get(name) is not None}
        # Without dropout torch's stores nothing for pairs of tokens, so that long texts need little memory.
        and (0 < dropout < 1 or (dropout == 0 and query.dtype == torch.bfloat16 and key.shape[2] <= LONGEST))
    )
    if not takes:
        from transformers import AttentionInterface

        attended, _ = AttentionInterface()["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return attended, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = None
    if attention_mask is not None:
        # Finite, so that a token that may see none gives no NaN: it sees all others equally.
        nothing, least = query.new_zeros(()), query.new_full((), torch.finfo(query.dtype).min)
        bias = torch.where(attention_mask, nothing, least)
    seed = draw_seed() if dropout else None
    attended = _Attention.apply(query, key, value, bias, scale, dropout, seed)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """dropout(softmax(scale * query key^T + bias)) value, with its gradients in closed form."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float,
        probability: float,
        seed: int | None,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            products = (query * scale) @ key.transpose(-1, -2)
            if bias is not None:
                products += bias
            weights = torch.softmax(products, -1)
            ctx.save_for_backward(query, key, value, weights)
            ctx.scale = scale
            ctx.dropped = lambda tensor: tensor if seed is None else drop(tensor, probability, seed)
            attended: Tensor = ctx.dropped(weights) @ value
            return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        query, key, value, weights = ctx.saved_tensors
        for_value = ctx.dropped(weights).transpose(-1, -2) @ gradient
        for_weights = ctx.dropped(gradient @ value.transpose(-1, -2))
        for_products = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        for_query, for_key = for_products @ key, for_products.transpose(-1, -2) @ query
        return for_query, for_key, for_value, None, None, None, None
