"""A square of n x n keys around each query, from n/2 before it to (n-1)/2 behind it, rounded down.

Clipped: at the border a query sees fewer keys (stand-alone self-attention, arXiv 1906.05909).
Shifted: at the border the square moves inwards, so that every query sees n^2 keys (neighbourhood attention, arXiv
2204.07143; even n as in NATTEN). On an axis shorter than n it sees all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..layout import Index
from ..window import WindowShape
from .shapes import Box, ShapedMask, between


@dataclass(frozen=True, slots=True)
class ClippedNeighbourhood(ShapedMask):
    side: int = 16
    name = "clipped_neighbourhood"
    paper = "1906.05909"

    def shape(self, layer: int) -> WindowShape:
        return Box(self.side // 2, (self.side - 1) // 2)


@dataclass(frozen=True, slots=True)
class ShiftedNeighbourhood(ShapedMask):
    side: int = 16
    name = "shifted_neighbourhood"
    paper = "2204.07143"

    def shape(self, layer: int) -> WindowShape:
        return _MovedInwards(self.side // 2, (self.side - 1) // 2)


@dataclass(frozen=True, slots=True)
class _MovedInwards(Box):
    def centre(self, index: Index, size: int, key_size: int) -> Index:
        return between(index, self.before, size - 1 - self.after)
