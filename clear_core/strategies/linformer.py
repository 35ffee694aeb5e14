"""Linformer (arXiv 2006.04768): learned projections E and F of the sequence, K' = E K and V' = F V, with k slots.

All heads share them. They belong to one grid, so the strategy cannot change the image's size. Cost: N (T + k) pairs,
and as much as N k pairs for the projections: linear in the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import Grid, TokenLayout
from .base import ImageCall, Maps, Parameters, wide
from .compression import Compression


@dataclass(frozen=True, slots=True)
class Linformer(Compression):
    """length: k. seed: of the initial values, uniform within 1 / sqrt(k)."""

    length: int = 256
    seed: int = 0
    name = "linformer"
    paper = "2006.04768"

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        both = torch.rand(2, self.length, grid.tokens, generator=generator).mul_(2).sub_(1).div_(self.length**0.5)
        return {"key_projection": both[0].clone(), "value_projection": both[1].clone()}

    def merge(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        key, value = self.image_maps(call, parameters)
        return key @ wide(call.key), value @ wide(call.value)

    def image_maps(self, call: ImageCall, parameters: Parameters) -> Maps:
        key, value = (parameters[name].to(wide(call.key).dtype) for name in ("key_projection", "value_projection"))
        if key.shape[1] != call.grid.tokens:
            raise ValueError(
                f"the projection is for {key.shape[1]} image tokens, the image has {call.grid.tokens}: "
                "Linformer works at the size it was trained at"
            )
        return Maps(key[None, None], value[None, None])

    def slots(self, layout: TokenLayout) -> int:
        return self.length

    def merge_flops(self, layout: TokenLayout, heads: int, head_dim: int) -> int:
        return 4 * self.length * layout.image.tokens * heads * head_dim
