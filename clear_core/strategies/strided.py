"""Strided attention (Sparse Transformers, arXiv 1904.10509), in two dimensions.

A query sees every s-th row and column, counted from its own: (y - y') mod s = (x - x') mod s = 0. The s^2 phases of the
grid never meet. Each is a smaller grid that is dense in itself, so it runs through PyTorch's dense kernel.

Cost: each query sees 1 / s^2 of the image: s = 4 has 256 keys at 64 x 64 tokens, and the cost stays quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from .base import ImageCall, Parameters, TextIsDense, scores


@dataclass(frozen=True, slots=True)
class Strided(TextIsDense):
    stride: int = 4
    name = "strided"
    paper = "1904.10509"

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        shape = call.grid.height, call.grid.width
        query, key, value = (tokens.unflatten(2, shape) for tokens in (call.query, call.key, call.value))
        out = torch.empty_like(query)
        for y, x in product(range(min(self.stride, shape[0])), range(min(self.stride, shape[1]))):
            phase = (..., slice(y, None, self.stride), slice(x, None, self.stride), slice(None))
            own = F.scaled_dot_product_attention(
                query[phase].flatten(2, 3),
                torch.cat((call.text_key, key[phase].flatten(2, 3)), dim=2),
                torch.cat((call.text_value, value[phase].flatten(2, 3)), dim=2),
            )
            out[phase] = own.unflatten(2, query[phase].shape[2:4])
        return out.flatten(2, 3)

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        phase = self._phase(call.grid).to(call.query.device)
        visible = F.pad(phase[:, None] == phase[None, :], (call.text_key.shape[2], 0), value=True)
        return scores(call.query, call.all_keys).masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        pairs = int((self._phase(layout.image).bincount() ** 2).sum())
        return 4 * heads * head_dim * (layout.image.tokens * layout.text + pairs)

    def _phase(self, grid: Grid) -> Tensor:
        """Which phase each image token belongs to: int64 [H*W]."""
        y, x = torch.arange(grid.height) % self.stride, torch.arange(grid.width) % self.stride
        return (y[:, None] * self.stride + x).flatten()
