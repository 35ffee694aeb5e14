"""Swin (arXiv 2103.14030): fixed windows of n x n tokens, which attend within themselves.

On odd layers the windows start n/2 rows and columns earlier, so that tokens on either side of an edge meet. Windows at
the border are then smaller: what the original's cyclic shift brings together there, its mask keeps apart. As in the
original, an axis that one window covers is not shifted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..layout import Index
from ..window import WindowShape
from .shapes import Box, ShapedMask


@dataclass(frozen=True, slots=True)
class Swin(ShapedMask):
    side: int = 16
    name = "swin"
    paper = "2103.14030"

    def shape(self, layer: int) -> WindowShape:
        half = self.side // 2
        return _FixedWindow(half, self.side - 1 - half, shift=half if layer % 2 else 0)


@dataclass(frozen=True, slots=True)
class _FixedWindow(Box):
    shift: int

    def centre(self, index: Index, size: int, key_size: int) -> Index:
        side = self.before + self.after + 1
        shift = self.shift if size > side else 0
        return (index + shift) // side * side - shift + self.before
