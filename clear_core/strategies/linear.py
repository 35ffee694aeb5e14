"""Linear attention: positive features of queries and keys in place of the exponential of their product.

    O = phi(Q) (phi(K)^T V) / (phi(Q) sum(phi(K)))

Linear (arXiv 2006.16236): phi(x) = elu(x) + 1.
Generalised linear (LinFusion, arXiv 2409.02097): phi(x) = elu(x + f(x)) + 1 with a learned f for queries and another
for keys: linear, LayerNorm, leaky ReLU, linear. The original applies f to the hidden states before the projections;
here it is one for each head, after them and after RoPE, and its second linear layer is zero before training.

Text and image share one sum. Cost: 4 N d operations a channel, as much as d keys of softmax attention, linear in the
tokens. W = phi(Q) phi(K)^T has a rank of d at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from .base import ImageCall, Parameters, TextIsDense, wide

_SMALLEST = 1e-6  # added to a row's sum


@dataclass(frozen=True, slots=True)
class Linear(TextIsDense):
    name = "linear"
    paper = "2006.16236"

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        query, key = self.features(call, parameters)
        total = query @ key.sum(dim=2)[..., None] + _SMALLEST
        return query @ (key.transpose(2, 3) @ wide(call.all_values)) / total

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        query, key = self.features(call, parameters)
        rows = query @ key.transpose(2, 3)
        return rows / (rows.sum(dim=-1, keepdim=True) + _SMALLEST)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        state = 2 * (layout.tokens + layout.image.tokens) * head_dim
        return (state + 2 * layout.image.tokens) * heads * head_dim

    def features(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """phi(Q) of the image and phi(K) of text and image."""
        return F.elu(wide(call.query)) + 1, F.elu(wide(call.all_keys)) + 1


@dataclass(frozen=True, slots=True)
class GeneralisedLinear(Linear):
    name = "generalised_linear"
    paper = "2409.02097"

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for side in ("query", "key"):
            found |= {
                f"{side}_first": torch.eye(head_dim).repeat(heads, 1, 1),
                f"{side}_first_bias": torch.zeros(heads, head_dim),
                f"{side}_norm": torch.ones(heads, head_dim),
                f"{side}_norm_bias": torch.zeros(heads, head_dim),
                f"{side}_second": torch.zeros(heads, head_dim, head_dim),
                f"{side}_second_bias": torch.zeros(heads, head_dim),
            }
        return found

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        learned = 4 * (layout.tokens + layout.image.tokens) * head_dim
        return Linear.image_flops(self, layout, heads, head_dim, layer) + learned * heads * head_dim

    def features(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        query, key = wide(call.query), wide(call.all_keys)
        return F.elu(query + _learned(query, parameters, "query")) + 1, F.elu(
            key + _learned(key, parameters, "key")
        ) + 1


def _learned(tokens: Tensor, parameters: Mapping[str, Tensor], side: str) -> Tensor:
    """f of tokens [batch, heads, tokens, head_dim]."""

    def bias(name: str) -> Tensor:
        return parameters[f"{side}_{name}"].to(tokens.dtype)[:, None]

    inner = tokens @ parameters[f"{side}_first"].to(tokens.dtype) + bias("first_bias")
    inner = F.layer_norm(inner, inner.shape[-1:]) * bias("norm") + bias("norm_bias")
    return F.leaky_relu(inner) @ parameters[f"{side}_second"].to(tokens.dtype) + bias("second_bias")
