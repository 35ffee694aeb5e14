"""Agent attention (arXiv 2312.08874): agents A, the means of the queries of s x s cells, read the image for all.

    V' = softmax(A K^T / sqrt(d)) V,    O = softmax(Q [K_text; A]^T / sqrt(d)) [V_text; V'] + DWC(V)

DWC is the original's depthwise 3 x 3 convolution, here zero before training. The original's position biases, which
belong to one image size, are left out. Cost: N (T + n) pairs and N n for the agents, n = N / s^2: 256 for s = 4 at
64 x 64 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from ..pooling import mean_weight, pool, pooled_grid
from .base import ImageCall, Maps, Parameters, softmax_rows
from .compression import Compression


@dataclass(frozen=True, slots=True)
class Agent(Compression):
    """Its `weights` leave out the convolution. `maps`: both from the agents' attention; A is no map of the keys."""

    side: int = 4
    name = "agent"
    paper = "2312.08874"

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        return {"convolution": torch.zeros(heads, head_dim, 3, 3)}

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        out = Compression.image_output(self, call, parameters, layer)
        kernel = parameters["convolution"].to(out.dtype)
        image = call.value.transpose(2, 3).flatten(1, 2).unflatten(2, (call.grid.height, call.grid.width))
        near = F.conv2d(image, kernel.flatten(0, 1)[:, None], padding=1, groups=image.shape[1])
        return out + near.flatten(2).unflatten(1, kernel.shape[:2]).transpose(2, 3)

    def merge(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        agents = self._agents(call)
        return agents, F.scaled_dot_product_attention(agents, call.key, call.value)

    def image_maps(self, call: ImageCall, parameters: Parameters) -> Maps:
        rows = softmax_rows(self._agents(call), call.key)
        return Maps(rows, rows)

    def slots(self, layout: TokenLayout) -> int:
        return pooled_grid(layout.image, self.side).tokens

    def merge_flops(self, layout: TokenLayout, heads: int, head_dim: int) -> int:
        agents, convolution = 4 * self.slots(layout), 2 * 9
        return (agents + convolution) * layout.image.tokens * heads * head_dim

    def _agents(self, call: ImageCall) -> Tensor:
        return pool(call.query, call.grid, mean_weight(self.side))
