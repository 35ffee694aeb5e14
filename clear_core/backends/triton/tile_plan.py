"""The plan of tiles: which boxes of keys each tile of queries visits, and which of them need no mask.

Queries are cut into tiles, keys into boxes; both are rectangles of the image. A tile's boxes lie in strips:

        . . b b b b . .      a strip that the window only touches is narrow,
        . b b b b b b .
        b b b F F b b b      F: every query of the tile sees every key of the box,
        b b b F F b b b         so the box needs no mask
        . b b b b b b .      what lies outside every window is never visited
        . . b b b b . .

Everything follows from geometry, in time and memory linear in the image, for one pair of grids at a time:
the image with itself, a band with its halo, or the image with a reference of another size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...layout import Band, Grid, same_place
from ...window import Window


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """Boxes by tile. Tiles are numbered row by row; a tile's boxes stand together, the unmasked ones first.

    tile, box: rows and columns of queries and of keys.
    ranges: int32 [3, tiles]: where a tile's boxes begin, where those that need a mask begin, where they end.
    boxes: int32 [boxes, 2]: row, within the key rows present, and column of a box's first key. A box may reach
        beyond the grid on the far sides; the mask hides what lies there.
    """

    tile: tuple[int, int]
    box: tuple[int, int]
    ranges: Tensor
    boxes: Tensor

    @property
    def tiles(self) -> int:
        return self.ranges.shape[1]

    @property
    def full_boxes(self) -> int:
        """Over all tiles, the boxes that need no mask."""
        return int((self.ranges[1] - self.ranges[0]).sum())

    def executed_pairs(self) -> int:
        """(query, key) pairs a kernel computes that visits every box whole, the padding of tiles included."""
        return self.boxes.shape[0] * self.box[0] * self.box[1] * self.tile[0] * self.tile[1]

    def to(self, device: torch.device) -> TilePlan:
        return TilePlan(self.tile, self.box, self.ranges.to(device), self.boxes.to(device))


@dataclass(frozen=True, slots=True)
class GridPair:
    """The rows of one grid that ask and the rows of one grid that answer, every column of both."""

    query: Grid
    query_rows: Band
    key: Grid
    key_rows: Band


def tile_plan(grids: GridPair, window: Window, tile: tuple[int, int], box: tuple[int, int]) -> TilePlan:
    """Plan one pair of grids on the CPU. tile, box: rows and columns of queries and of keys."""
    rows = _axis_tiles(grids.query_rows, grids.query.height, grids.key.height, tile[0])
    columns = _axis_tiles(Band(0, grids.query.width), grids.query.width, grids.key.width, tile[1])
    half_widths = torch.tensor([window.half_width(dy) for dy in range(window.radius + 1)], dtype=torch.int32)

    # Strips of each row of tiles: [tile rows, strips].
    low = (rows[0] - window.halo).clamp_(min=grids.key_rows.start)
    high = (rows[1] + window.halo + 1).clamp_(max=grids.key_rows.stop)
    strips = _steps(low, high, box[0])
    first, last = strips, strips + box[0] - 1
    near = torch.maximum(first - rows[1][:, None], rows[0][:, None] - last).clamp_(min=0)
    far = torch.maximum(last - rows[0][:, None], rows[1][:, None] - first)
    reach = half_widths[near.clamp_(max=window.radius).long()].masked_fill_(strips >= high[:, None], -1)
    whole_rows = last < grids.key_rows.stop

    # Boxes of each strip for each column of tiles: [tile rows, strips, tile columns, boxes].
    left = (columns[0] - reach[..., None]).clamp_(min=0)
    right = (columns[1] + reach[..., None] + 1).clamp_(max=grids.key.width)
    right = torch.where(reach[..., None] < 0, left, right)
    boxes = _steps(left, right, box[1])
    visited = boxes < right[..., None]
    wide = torch.maximum(boxes + (box[1] - 1) - columns[0][:, None], columns[1][:, None] - boxes)
    inside = boxes + box[1] <= grids.key.width
    full = window.contains(far[..., None, None], wide)
    full &= visited & inside & whole_rows[..., None, None]

    # By tile, the unmasked first: [tile rows, tile columns, strips * boxes].
    order = torch.where(full, 0, torch.where(visited, 1, 2)).to(torch.int8).movedim(2, 1).flatten(2)
    y = (strips - grids.key_rows.start)[:, :, None, None].expand_as(boxes).movedim(2, 1).flatten(2)
    place = torch.stack((y, boxes.movedim(2, 1).flatten(2)), dim=-1).flatten(0, 1)
    kind, index = order.flatten(0, 1).sort(dim=1, stable=True)
    chosen = place.gather(1, index[..., None].expand(-1, -1, 2))[kind < 2]
    counts, unmasked = (kind < 2).sum(1), (kind == 0).sum(1)
    ends = counts.cumsum(0)
    ranges = torch.stack((ends - counts, ends - counts + unmasked, ends))
    return TilePlan(tile, box, ranges.to(torch.int32), chosen.to(torch.int32).contiguous())


def _axis_tiles(queries: Band, size: int, key_size: int, tile: int) -> Tensor:
    """Where the first and the last query of each tile of an axis look: int32 [2, tiles]."""
    first = torch.arange(queries.start, queries.stop, tile, dtype=torch.int32)
    last = (first + tile).clamp_(max=queries.stop) - 1
    return same_place(torch.stack((first, last)), size, key_size)


def _steps(low: Tensor, high: Tensor, step: int) -> Tensor:
    """low, low + step, ... as many for each interval as the widest needs: one more dimension, last."""
    count = int((-(-(high - low).clamp(min=0) // step)).max()) if low.numel() else 0
    return low[..., None] + step * torch.arange(count, dtype=torch.int32)
