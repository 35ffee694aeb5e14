"""Attention of square blocks of queries to chosen blocks of keys, gathered as tiles for PyTorch's dense kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..call import DEFAULT_BUDGET
from ..layout import Grid
from ..pooling import in_cells, pooled_grid
from .base import ImageCall


def attend_blocks(call: ImageCall, side: int, chosen: Tensor) -> Tensor:
    """Softmax attention of each query block to the text and to the key blocks chosen for it.

    side: of a block, in tokens; blocks are numbered row by row, and those at the border may be smaller.
    chosen: int64 [batch or 1, heads or 1, blocks, n], no block twice for one query block.
    Returns [batch, heads, image tokens, head_dim]. The gathered keys of a few blocks at a time take up to the default
    memory budget of a backend.
    """
    batch, heads, _, channels = call.query.shape
    query, key, value = (to_blocks(tokens, call.grid, side) for tokens in (call.query, call.key, call.value))
    there = block_tokens(call.grid, side, call.query.device)
    chosen = chosen.expand(batch, heads, -1, -1)
    b, h = torch.arange(batch)[:, None, None, None], torch.arange(heads)[None, :, None, None]
    text = call.text_key.shape[2]
    per_block = 2 * batch * heads * channels * key.element_size() * (text + chosen.shape[3] * side**2)
    step = max(1, DEFAULT_BUDGET // per_block)
    parts = []
    for some in chosen.split(step, dim=2):
        keys, values = (
            torch.cat((shared[:, :, None].expand(-1, -1, some.shape[2], -1, -1), own[b, h, some].flatten(3, 4)), dim=3)
            for shared, own in ((call.text_key, key), (call.text_value, value))
        )
        visible = F.pad(there[some].flatten(3, 4), (text, 0), value=True)
        first = sum(part.shape[2] for part in parts)
        queries = query[:, :, first : first + some.shape[2]]
        out = F.scaled_dot_product_attention(
            queries.flatten(1, 2), keys.flatten(1, 2), values.flatten(1, 2), attn_mask=visible.flatten(1, 2)[:, :, None]
        )
        parts.append(out.unflatten(1, (heads, -1)))
    return from_blocks(torch.cat(parts, dim=2), call.grid, side)


def block_mask(grid: Grid, side: int, chosen: Tensor) -> Tensor:
    """The same choice as a mask: bool [batch or 1, heads or 1, image tokens, image tokens]."""
    blocks = chosen.shape[2]
    picked = torch.zeros(*chosen.shape[:3], blocks, dtype=torch.bool, device=chosen.device).scatter_(3, chosen, True)
    own = block_of(grid, side).to(chosen.device)
    return picked[:, :, own][..., own]


def block_of(grid: Grid, side: int) -> Tensor:
    """The block of each image token: int64 [H*W]."""
    rows, columns = torch.arange(grid.height) // side, torch.arange(grid.width) // side
    return (rows[:, None] * pooled_grid(grid, side).width + columns).flatten()


def block_tokens(grid: Grid, side: int, device: torch.device) -> Tensor:
    """Which places of each block hold a token: bool [blocks, side^2]."""
    return to_blocks(torch.ones(grid.tokens, 1, device=device), grid, side)[..., 0] > 0


def to_blocks(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Image tokens [..., H*W, channels] as [..., blocks, side^2, channels], zeros where a block has no token."""
    return in_cells(tokens, grid, side).transpose(-4, -3).flatten(-5, -4).flatten(-3, -2)


def from_blocks(blocks: Tensor, grid: Grid, side: int) -> Tensor:
    """The inverse of `to_blocks`."""
    cells = pooled_grid(grid, side)
    image = blocks.unflatten(-2, (side, side)).unflatten(-4, (cells.height, cells.width)).transpose(-4, -3)
    return image.flatten(-5, -4).flatten(-3, -2)[..., : grid.height, : grid.width, :].flatten(-3, -2)
