"""Sliding tiles (arXiv 2502.04507): all queries of a tile see the same tiles, those around it.

Tiles of n x n tokens, w x w of them visible with w odd; at the border the square of tiles moves inwards. n = 5 and
w = 3 have 225 keys. The last tile of an axis may be smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..layout import Index
from ..window import WindowShape
from .shapes import Box, ShapedMask, between


@dataclass(frozen=True, slots=True)
class SlidingTiles(ShapedMask):
    tile: int = 5
    across: int = 3
    name = "tiles"
    paper = "2502.04507"

    def shape(self, layer: int) -> WindowShape:
        before = self.across // 2 * self.tile
        return _Tiled(before, before + self.tile - 1, tile=self.tile)


@dataclass(frozen=True, slots=True)
class _Tiled(Box):
    """Its centre is the first token of the middle tile."""

    tile: int

    def centre(self, index: Index, size: int, key_size: int) -> Index:
        reach, tiles = self.before // self.tile, -(-size // self.tile)
        return between(index // self.tile, reach, tiles - 1 - reach) * self.tile
