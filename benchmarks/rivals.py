"""What this pack is measured against: PyTorch's dense kernels, and CLEAR as its authors compute it.

The authors' code gives FlexAttention the tokens in raster order, with a mask made by asking about every pair.
`tiled_flex` is FlexAttention at its best for this mask: tokens permuted into tiles, the blocks known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clear_core.layout import Grid

_LARGEST_MASK = 2**33  # pairs; the mask of 4096 px is made of 4.4e9, that of 8192 px of 6.9e10
_TILE = (8, 16)
_BLOCK = _TILE[0] * _TILE[1]


def dense_kernels(query: Tensor, key: Tensor, value: Tensor, scale: float) -> dict[str, Callable[[], Tensor]]:
    """Each of PyTorch's own kernels that takes these tensors, by name."""
    kinds = {"flash": SDPBackend.FLASH_ATTENTION}
    if query.device.type == "cuda":
        kinds |= {"cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    found: dict[str, Callable[[], Tensor]] = {}
    for name, kind in kinds.items():

        def run(kind: SDPBackend = kind) -> Tensor:
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(query, key, value, scale=scale)

        small = tuple(tensor[:, :, :256] for tensor in (query, key, value))
        try:
            with sdpa_kernel(kind):
                F.scaled_dot_product_attention(small[0], small[1], small[2], scale=scale)
        except RuntimeError:
            continue
        found[f"dense {name}"] = run
    return found


def authors_way(
    query: Tensor, key: Tensor, value: Tensor, text: int, image: Grid, radius: int, pooled: int, scale: float
) -> Callable[[], Tensor] | None:
    """Raster-ordered FlexAttention; key and value end with the down-sampled tokens. None where the mask is too big."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    queries, keys = query.shape[2], key.shape[2]
    if queries * keys > _LARGEST_MASK:
        return None
    total, width = text + image.tokens, image.width

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        del b, h
        y, x = (q - text) // width - (k - text) // width, (q - text) % width - (k - text) % width
        near = y * y + x * x < radius * radius
        return torch.where(k >= total, q >= text, (q < text) | (k < text) | near)

    mask = create_block_mask(sees, None, None, queries, keys, device=query.device.type, _compile=True)
    flex: Any = torch.compile(flex_attention, dynamic=False)
    return lambda: flex(query, key, value, block_mask=mask, scale=scale)


def tiled_flex(
    query: Tensor, key: Tensor, value: Tensor, text: int, image: Grid, radius: int, scale: float
) -> Callable[[], Tensor]:
    """FlexAttention over tokens ordered by tiles, text first; the permutation is part of its time."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    device = query.device
    order, origin = _tile_order(text, image, device)
    place = torch.argsort(order)[: text + image.tokens]
    number, index, full_number, full_index = _blocks(text, image, radius, device)
    y, x = origin

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        del b, h
        near = (y[q] - y[k]).square() + (x[q] - x[k]).square() < radius * radius
        real = (x[k] >= 0) | (k < text)
        return real & ((q < text) | (k < text) | near)

    mask = BlockMask.from_kv_blocks(
        number[None, None],
        index[None, None],
        full_number[None, None],
        full_index[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
    )
    source = order.clamp(max=text + image.tokens - 1)
    flex: Any = torch.compile(flex_attention, dynamic=False)

    def run() -> Tensor:
        tiled = (tensor[:, :, source] for tensor in (query, key, value))
        return flex(*tiled, block_mask=mask, scale=scale)[:, :, place]

    return run


def _tile_order(text: int, image: Grid, device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """For each place of the tiled sequence its token, places of padding last in value; and its row and column."""
    blocks = -(-text // _BLOCK)
    rows, columns = -(-image.height // _TILE[0]), -(-image.width // _TILE[1])
    grid = torch.arange(rows * columns * _BLOCK, device=device)
    tile, inner = grid // _BLOCK, grid % _BLOCK
    y = tile // columns * _TILE[0] + inner // _TILE[1]
    x = tile % columns * _TILE[1] + inner % _TILE[1]
    outside = (y >= image.height) | (x >= image.width)
    last = text + image.tokens
    token = torch.where(outside, last + grid, text + y * image.width + x)
    first = torch.arange(blocks * _BLOCK, device=device)
    words = torch.where(first < text, first, last + grid.numel() + first)
    nowhere = torch.full_like(first, -(10**6))
    y, x = torch.where(outside, -(10**6), y), torch.where(outside, -(10**6), x)
    return torch.cat((words, token)), (torch.cat((nowhere, y)), torch.cat((nowhere, x)))


def _blocks(text: int, image: Grid, radius: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number and indices of partial and of full blocks for each block of queries, from geometry."""
    blocks = -(-text // _BLOCK)
    rows, columns = -(-image.height // _TILE[0]), -(-image.width // _TILE[1])
    partial = [list(range(blocks + rows * columns)) for _ in range(blocks)]
    full: list[list[int]] = [[] for _ in range(blocks)]
    around = [
        (dy, dx, _furthest(dy, 0) ** 2 + _furthest(dx, 1) ** 2 < radius**2)
        for dy in range(-rows, rows + 1)
        for dx in range(-columns, columns + 1)
        if _nearest(dy, 0) ** 2 + _nearest(dx, 1) ** 2 < radius**2
    ]
    for y in range(rows):
        for x in range(columns):
            partial.append(list(range(text // _BLOCK, blocks)))
            full.append(list(range(text // _BLOCK)))
            for dy, dx, whole in around:
                row, column = y + dy, x + dx
                if not (0 <= row < rows and 0 <= column < columns):
                    continue
                inside = (row + 1) * _TILE[0] <= image.height and (column + 1) * _TILE[1] <= image.width
                (full if whole and inside else partial)[-1].append(blocks + row * columns + column)
    return (*_ragged(partial, device), *_ragged(full, device))


def _nearest(tiles: int, axis: int) -> int:
    """The least distance along an axis between tokens of tiles that lie `tiles` apart."""
    return max(0, (abs(tiles) - 1) * _TILE[axis] + 1) if tiles else 0


def _furthest(tiles: int, axis: int) -> int:
    return (abs(tiles) + 1) * _TILE[axis] - 1


def _ragged(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(1, max(map(len, rows)))
    index = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int32)
    return torch.tensor([len(row) for row in rows], dtype=torch.int32, device=device), index.to(device)
