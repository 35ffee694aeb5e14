"""The tile plan: which KV tiles each tile of queries visits, and which of them are full, that is need no mask.

Queries are cut into tiles, and the keys around each tile into KV tiles ("boxes"); both are rectangles of the image.
The boxes of a tile lie in strips:

        . . P P P P . .      a strip near the window's edge is narrow
        . P P P P P P .
        P P P F F P P P      F: full, every query of the tile sees every key of the box
        P P P F F P P P      P: partial, the box needs a mask
        . P P P P P P .      boxes that no query of the tile sees are not visited
        . . P P P P . .

Everything follows from geometry, in time and memory linear in the image, for one pair of grids at a time:
the image with itself, a band with its halo, or the image with a reference of another size. Pairs that are equal once
normalised (`geometry`) have equal plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...layout import Band, same_place
from ...window import Window
from ..geometry import GridPair
from ..on_device import upload


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """Boxes by tile. Tiles are numbered row by row; the boxes of a tile are adjacent, the full ones first.

    tile, box: rows and columns of a tile of queries and of a KV tile.
    ranges: int32 [3, tiles]: where a tile's boxes begin, where its partial boxes begin, where they end.
    boxes: int32 [boxes, 2]: row, within the key rows present, and column of a box's first key. A partial box may
        extend beyond the grid at the far sides; the mask hides what lies there.
    geometry: int32 [9]: rows and columns of the queries, rows and columns of the keys, the first query row and the
        first key row within their grids, the heights of these grids, the number of tiles.
    """

    tile: tuple[int, int]
    box: tuple[int, int]
    ranges: Tensor
    boxes: Tensor
    geometry: Tensor

    @property
    def tiles(self) -> int:
        return self.ranges.shape[1]

    @property
    def full_boxes(self) -> int:
        """Number of full boxes over all tiles."""
        return int((self.ranges[1] - self.ranges[0]).sum())

    def executed_pairs(self) -> int:
        """(query, key) pairs that the kernel computes: every box completely, the padding of tiles included."""
        return self.boxes.shape[0] * self.box[0] * self.box[1] * self.tile[0] * self.tile[1]

    @property
    def nbytes(self) -> int:
        return self.ranges.nbytes + self.boxes.nbytes + self.geometry.nbytes

    def to(self, device: torch.device) -> TilePlan:
        ranges, boxes, geometry = (upload(part, device) for part in (self.ranges, self.boxes, self.geometry))
        return TilePlan(self.tile, self.box, ranges, boxes, geometry)


class _Strips(NamedTuple):
    """Rows of boxes, one list for each row of tiles. Tensors are [tile rows, strips].

    first: first key row. reach: the largest dx of a window at the strip's nearest row, -1 for no strip.
    far: the largest dy between a query of the tile and a key of the strip. inside: no row beyond the key rows.
    """

    first: Tensor
    reach: Tensor
    far: Tensor
    inside: Tensor


class _Boxes(NamedTuple):
    """Boxes in strips. Tensors are [tile rows, strips, tile columns, boxes].

    first: first key column. visited: whether any query sees any key. full: whether every query sees every key.
    """

    first: Tensor
    visited: Tensor
    full: Tensor


def tile_plan(grids: GridPair, window: Window, tile: tuple[int, int], box: tuple[int, int]) -> TilePlan:
    """Plan one pair of grids, on the CPU. tile, box: rows and columns of a tile of queries and of a KV tile."""
    strips = _strips(grids, window, tile[0], box[0])
    boxes = _boxes(grids, window, strips, tile[1], box[1])
    ranges, corners = _pack(strips.first - grids.key_rows.start, boxes)
    return TilePlan(tile, box, ranges, corners, _geometry(grids, ranges.shape[1]))


def _geometry(grids: GridPair, tiles: int) -> Tensor:
    """A plan's `geometry`."""
    queries, keys = grids.query_rows, grids.key_rows
    shapes = (len(queries), grids.query.width, len(keys), grids.key.width)
    rows = (queries.start, keys.start, grids.query.height, grids.key.height)
    return torch.tensor((*shapes, *rows, tiles), dtype=torch.int32)


def _strips(grids: GridPair, window: Window, tile_height: int, box_height: int) -> _Strips:
    """Cut the key rows that each row of tiles sees into strips."""
    top, bottom = _tile_centres(grids.query_rows, grids.query.height, grids.key.height, tile_height)
    low = (top - window.halo).clamp_(min=grids.key_rows.start)
    high = (bottom + window.halo + 1).clamp_(max=grids.key_rows.stop)
    first = _steps(low, high, box_height)
    last = first + box_height - 1
    near = torch.maximum(first - bottom[:, None], top[:, None] - last).clamp_(min=0, max=window.radius)
    far = torch.maximum(last - top[:, None], bottom[:, None] - first)
    half_widths = torch.tensor([window.half_width(dy) for dy in range(window.radius + 1)], dtype=torch.int32)
    reach = half_widths[near.long()].masked_fill_(first >= high[:, None], -1)
    return _Strips(first, reach, far, last < grids.key_rows.stop)


def _boxes(grids: GridPair, window: Window, strips: _Strips, tile_width: int, box_width: int) -> _Boxes:
    """Cut the part of each strip that each tile sees into boxes, and find the full ones."""
    left, right = _tile_centres(Band(0, grids.query.width), grids.query.width, grids.key.width, tile_width)
    reach = strips.reach[..., None]
    low = (left - reach).clamp_(min=0)
    high = (right + reach + 1).clamp_(max=grids.key.width)
    high = torch.where(reach < 0, low, high)
    first = _steps(low, high, box_width)
    visited = first < high[..., None]
    far = torch.maximum(first + (box_width - 1) - left[:, None], right[:, None] - first)
    full = window.contains(strips.far[..., None, None], far) & strips.inside[..., None, None]
    full &= visited & (first + box_width <= grids.key.width)
    return _Boxes(first, visited, full)


def _pack(rows: Tensor, boxes: _Boxes) -> tuple[Tensor, Tensor]:
    """A plan's `ranges` and `boxes`: those visited, by tile, the full ones first. rows: of strips, among the keys."""
    kind = torch.where(boxes.full, 0, torch.where(boxes.visited, 1, 2)).to(torch.int8)
    y = rows[:, :, None, None].expand_as(boxes.first)
    # By tile: [tile rows * tile columns, strips * boxes].
    kind, y, x = (tensor.movedim(2, 1).flatten(2).flatten(0, 1) for tensor in (kind, y, boxes.first))
    kind, order = kind.sort(dim=1, stable=True)
    corners = torch.stack((y, x), dim=-1).gather(1, order[..., None].expand(-1, -1, 2))[kind < 2]
    visited, full = (kind < 2).sum(1), (kind == 0).sum(1)
    ends = visited.cumsum(0)
    ranges = torch.stack((ends - visited, ends - visited + full, ends))
    return ranges.to(torch.int32), corners.to(torch.int32).contiguous()


def _tile_centres(queries: Band, size: int, key_size: int, tile: int) -> Tensor:
    """The window centres of the first and the last query of each tile of an axis: int32 [2, tiles]."""
    first = torch.arange(queries.start, queries.stop, tile, dtype=torch.int32)
    last = (first + tile).clamp_(max=queries.stop) - 1
    return same_place(torch.stack((first, last)), size, key_size)


def _steps(low: Tensor, high: Tensor, step: int) -> Tensor:
    """low, low + step, ... in a new last dimension, as many for every interval as the widest one needs."""
    count = int((-(-(high - low).clamp(min=0) // step)).max()) if low.numel() else 0
    return low[..., None] + step * torch.arange(count, dtype=torch.int32)
