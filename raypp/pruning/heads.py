"""Counts the remaining weights of each attention head, and which heads survive pruning."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypp.pruning.density import kept_weights, split_layer_name
from raypp.pruning.linear import MaskedLinear, all_linear_layers, encoder_of

# Names of the four matrices of an attention layer in the model families, after the part of the name for the attention.
_ROLES = {
    "query": r"query|query_proj|q_lin|q_proj",
    "key": r"key|key_proj|k_lin|k_proj",
    "value": r"value|value_proj|v_lin|v_proj",
    "output": r"output\.dense|dense|out_lin|out_proj|o_proj",
}
_ATTENTION = {
    role: re.compile(rf"((?:.*?\.)?[^.]*att[^.]*)\.(?:[^.]+\.)?(?:{names})") for role, names in _ROLES.items()
}


@dataclass(frozen=True)
class AttentionHeads:
    """The remaining weights of the heads of one attention layer."""

    stack: str
    """The dotted name before the layer's number; empty without a number. It also names the attention if the layer has
    two."""
    number: str
    """The layer's number."""
    kept: tuple[int, ...]
    """Number of remaining weights of each head: its rows of query, key and value, and its columns of the output matrix.
    Keys and values that several heads share (grouped-query attention) count for each of these heads."""
    total: int
    """Number of all weights of a head."""
    survives: tuple[bool, ...]
    """Whether each head still has an effect: a weight remains in its values and in its columns of the output. Any other
    head adds the same vector (from biases) to every token."""


@torch.no_grad()
def count_heads(model: nn.Module) -> tuple[AttentionHeads, ...]:
    """The heads of every attention layer of a patched or plain encoder, in the model's order.

    Empty for a model whose configuration has no number of heads, or whose attention does not have four matrices with
    names known here (because they are fused, for example).
    """
    encoder = encoder_of(model)
    config = getattr(encoder, "config", None)
    usual_heads = getattr(config, "num_attention_heads", None)
    if usual_heads is None:
        return ()
    found: dict[tuple[str, str, str], dict[str, nn.Linear | MaskedLinear]] = {}
    heads: dict[tuple[str, str, str], int] = {}
    layers = all_linear_layers(model)
    for name, layer in layers.items():
        stack, number, kind = split_layer_name(name)
        for role, pattern in _ATTENTION.items():
            if match := pattern.fullmatch(kind):
                found.setdefault((stack, number, match[1]), {})[role] = layer
                if role == "query":  # a decoder may have another number of heads than its encoder
                    heads[stack, number, match[1]] = _own_heads(encoder, name) or usual_heads
    whole = {
        key: matrices
        for key, matrices in found.items()
        # An output matrix that reads more than its heads (ConvBERT's reads a convolution, too) has no columns of a
        # head.
        if matrices.keys() == _ROLES.keys() and matrices["output"].in_features == matrices["query"].out_features
    }
    per_layer = Counter((stack, number) for stack, number, _ in whole)
    counted = []
    for (stack, number, attention), matrices in whole.items():
        own = heads[stack, number, attention]
        keys = (getattr(config, "num_key_value_heads", None) or own) if own == usual_heads else own
        label = stack if per_layer[stack, number] == 1 else f"{attention} of {stack}"
        counted.append(_heads(label, number, own, keys, matrices))
    return tuple(counted)


def _own_heads(encoder: nn.Module, name: str) -> int | None:
    """The number of heads in the attention module of a layer, under the names that the model families use."""
    module = encoder.get_submodule(name.rpartition(".")[0])
    names = ("num_attention_heads", "num_heads", "n_heads")
    return next((value for value in (getattr(module, each, None) for each in names) if isinstance(value, int)), None)


def _heads(
    stack: str, number: str, heads: int, keys: int, matrices: dict[str, nn.Linear | MaskedLinear]
) -> AttentionHeads:
    rows = {"query": kept_weights(matrices["query"]).view(heads, -1)}
    for role in ("key", "value"):  # head h uses the keys and values of number h // (heads // keys)
        rows[role] = kept_weights(matrices[role]).view(keys, -1).repeat_interleave(heads // keys, dim=0)
    output = kept_weights(matrices["output"])
    rows["output"] = output.view(len(output), heads, -1).transpose(0, 1).reshape(heads, -1)
    counts: dict[str, Tensor] = {role: kept.sum(1) for role, kept in rows.items()}
    survives = (counts["value"] > 0) & (counts["output"] > 0)
    kept = torch.stack(list(counts.values())).sum(0)
    return AttentionHeads(
        stack, number, tuple(kept.tolist()), sum(kept.shape[1] for kept in rows.values()), tuple(survives.tolist())
    )
