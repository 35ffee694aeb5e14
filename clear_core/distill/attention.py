"""What a student attends with in training: CLEAR's window, exact, under a dense mask, or whatever is put in its place.

Differentiable in everything it is given. The backends serve inference: the kernels have no backward, and their pooling
takes its weight as numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from ..pattern import LocalPattern
from ..pooling import in_cells, pooled_grid
from ..weights import BlockId
from ..window import Window
from .trained import Trained


class BlockAttention(Protocol):
    """A student's attention, in place of the dense one."""

    def __call__(
        self, block: BlockId, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, trained: Trained
    ) -> Tensor:
        """One block's. query, key, value: [batch, heads, tokens, head_dim] after RoPE, text first, in the layout.

        trained: has what this attention learns besides the projections, if anything, by names that `block_of_key`
        understands. Returns [batch, tokens, heads * head_dim], with gradients for all of it; the same for the same
        arguments, since a block is computed again in the backward.
        """
        ...


class WindowAttention:
    """CLEAR's: a window and, with down_factor > 1, tokens pooled by the trained weight of each block."""

    def __init__(self, window: Window, down_factor: int = 1) -> None:
        self._window, self._factor = window, down_factor
        self._last: tuple[StudentAttention, Tensor] | None = None

    def __call__(
        self, block: BlockId, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, trained: Trained
    ) -> Tensor:
        """As `BlockAttention`."""
        if self._last is None or self._last[0].layout != layout or self._last[1].device != query.device:
            attention = StudentAttention(layout, self._window, self._factor)
            self._last = attention, attention.mask(query.device)
        attention, mask = self._last
        weight = trained.pooling(block)
        return attention(query, key, value, mask, None if weight is None else weight.to(query.device))


@dataclass(frozen=True, slots=True)
class StudentAttention:
    """Text sees text and image; an image token sees text, its window and, with down_factor > 1, all pooled tokens."""

    layout: TokenLayout
    window: Window
    down_factor: int = 1

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """True where a query sees a key: bool [tokens, pooled + tokens]. For `__call__`, made once for many layers."""
        factor = self.down_factor
        pooled = pooled_grid(self.layout.image, factor).tokens if factor > 1 else 0
        return LocalPattern.whole(self.layout, self.window, pooled=pooled).mask(device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """query, key, value: [batch, heads, tokens, head_dim] after RoPE, text first. weight: [f, f] for pooling.

        Returns [batch, tokens, heads * head_dim].
        """
        if weight is not None:
            image = self.layout.slices().image
            key, value = (
                torch.cat((pool(tokens[:, :, image], self.layout.image, weight), tokens), dim=2)
                for tokens in (key, value)
            )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)


def pool(tokens: Tensor, grid: Grid, weight: Tensor) -> Tensor:
    """`pooling.pool` with a gradient for the weight.

    tokens: [batch, heads, H*W, head_dim], row-major over `grid`. weight: [f, f] on the tokens' device. A partial cell
    at the border is rescaled to the full total, unless the weights that it has cancel out.
    """
    factor = weight.shape[0]
    wide = torch.promote_types(tokens.dtype, torch.float32)
    weight = weight.to(wide)
    total = torch.einsum("bhyixjd,ij->bhyxd", in_cells(tokens.to(wide), grid, factor), weight)
    if grid.height % factor or grid.width % factor:
        there = in_cells(torch.ones(grid.tokens, 1, device=weight.device, dtype=wide), grid, factor)[..., 0]
        used = torch.einsum("yixj,ij->yx", there, weight)
        partial = (there.sum((1, 3)) < factor**2) & (used.abs() > 1e-6)
        gain = torch.where(partial, weight.sum() / torch.where(partial, used, 1.0), 1.0)
        total = total * gain[..., None]
    return total.to(tokens.dtype).flatten(2, 3)
