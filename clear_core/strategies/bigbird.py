"""BigBird (arXiv 2007.14062) with its blocks laid out in two dimensions.

A block of s x s queries sees the 3 x 3 blocks around it, the first and the last block of the image, and blocks drawn at
random, another draw in each layer and head: 14 blocks, which with s = 4 are 224 keys. Where the border leaves fewer
than nine blocks around it, more are drawn. The queries of the first and the last block see every token; with them a
query has 254 image keys on average at 64 x 64 tokens. Text tokens are global besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from ..pooling import pooled_grid
from .base import ImageCall, Parameters, TextIsDense, scores
from .blocks import attend_blocks, block_mask, block_of


@dataclass(frozen=True, slots=True)
class BigBird(TextIsDense):
    """seed: of the draws. drawn: random blocks of a query block whose other blocks are all different."""

    side: int = 4
    drawn: int = 3
    seed: int = 0
    name = "bigbird"
    paper = "2007.14062"

    def chosen(self, grid: Grid, heads: int, layer: int) -> Tensor:
        """The key blocks of each query block: int64 [1, heads, blocks, n]."""
        cells = pooled_grid(grid, self.side)
        row, column = torch.arange(cells.tokens) // cells.width, torch.arange(cells.tokens) % cells.width
        near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)
        near[:, [0, -1]] = True
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
        draw = torch.rand(1, heads, cells.tokens, cells.tokens, generator=generator)
        return (draw + near).topk(min(11 + self.drawn, cells.tokens), dim=-1).indices

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        chosen = self.chosen(call.grid, call.query.shape[1], layer).to(call.query.device)
        out = attend_blocks(call, self.side, chosen)
        seeing_all = self._global(call.grid).to(call.query.device)
        dense = F.scaled_dot_product_attention(call.query[:, :, seeing_all], call.all_keys, call.all_values)
        return out.index_copy(2, seeing_all.nonzero()[:, 0], dense)

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        chosen = self.chosen(call.grid, call.query.shape[1], layer).to(call.query.device)
        visible = block_mask(call.grid, self.side, chosen) | self._global(call.grid).to(call.query.device)[:, None]
        visible = F.pad(visible, (call.text_key.shape[2], 0), value=True)
        return scores(call.query, call.all_keys).masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        sizes = block_of(layout.image, self.side).bincount()
        seen = sizes[self.chosen(layout.image, heads, layer)].sum(-1)
        seen[..., [0, -1]] = layout.image.tokens
        return 4 * head_dim * (heads * layout.image.tokens * layout.text + int((seen * sizes).sum()))

    def _global(self, grid: Grid) -> Tensor:
        """Whether each image token lies in the first or the last block: bool [H*W]."""
        block = block_of(grid, self.side)
        return (block == 0) | (block == block[-1])
