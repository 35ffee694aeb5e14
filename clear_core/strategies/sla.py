"""Sparse-linear attention (SLA, arXiv 2509.24006): softmax over the most relevant blocks, and linear attention.

Blocks of s x s tokens; a block of queries reads the k blocks of keys whose mean key has the largest product with its
mean query, and the text. All keys, text and image, enter linear attention besides, with phi = softmax over channels:

    O = softmax(Q K_chosen^T / sqrt(d)) V_chosen + P phi(Q) (phi(K)^T V) / (phi(Q) sum(phi(K))) + b

P and b are zero before training, as in the authors' code, which computes the linear part over all keys as well. Their
blocks are runs of 64 tokens, these squares. Cost: N (T + k s^2) pairs, 256 image keys for s = 8 and k = 4, and 6 N d
operations a channel for the linear part; the choice takes (N / s^2)^2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from ..pooling import pooled_grid
from .base import ImageCall, Parameters, TextIsDense, scores, wide
from .blocks import attend_blocks, block_mask, block_tokens, to_blocks

_SMALLEST = 1e-5  # added to a row's sum


@dataclass(frozen=True, slots=True)
class SparseLinear(TextIsDense):
    """side: s. blocks: k. Its `weights` are of the sparse part: the projection mixes channels, which no W describes."""

    side: int = 8
    blocks: int = 4
    name = "sla"
    paper = "2509.24006"

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        return {"projection": torch.zeros(head_dim, head_dim), "bias": torch.zeros(head_dim)}

    def chosen(self, call: ImageCall) -> Tensor:
        """The key blocks that each query block reads: int64 [batch, heads, blocks, k]."""
        tokens = block_tokens(call.grid, self.side, call.query.device).sum(1)[:, None]
        query, key = (to_blocks(wide(x.detach()), call.grid, self.side).sum(3) / tokens for x in (call.query, call.key))
        return (query @ key.transpose(2, 3)).topk(min(self.blocks, len(tokens)), dim=-1).indices

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        sparse = attend_blocks(call, self.side, self.chosen(call))
        query, key = wide(call.query).softmax(dim=-1), wide(call.all_keys).softmax(dim=-1)
        total = query @ key.sum(dim=2)[..., None] + _SMALLEST
        linear = query @ (key.transpose(2, 3) @ wide(call.all_values)) / total
        return sparse + linear @ parameters["projection"].to(linear.dtype).T + parameters["bias"].to(linear.dtype)

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        visible = F.pad(block_mask(call.grid, self.side, self.chosen(call)), (call.text_key.shape[2], 0), value=True)
        return scores(call.query, call.all_keys).masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        image, cells = layout.image.tokens, pooled_grid(layout.image, self.side).tokens
        sparse = 4 * image * (layout.text + min(self.blocks, cells) * self.side**2) + 2 * cells**2
        linear = 2 * (layout.tokens + 2 * image) * head_dim + 2 * image
        return (sparse + linear) * heads * head_dim
