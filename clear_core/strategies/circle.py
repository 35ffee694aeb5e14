"""The circle of CLEAR (arXiv 2412.16112): dy^2 + dx^2 < r^2, clipped at the border. r = 9 has 249 keys."""

from __future__ import annotations

from dataclasses import dataclass

from ..window import Window, WindowShape
from .shapes import ShapedMask


@dataclass(frozen=True, slots=True)
class Circle(ShapedMask):
    radius: int = 9
    name = "circle"
    paper = "2412.16112"

    def shape(self, layer: int) -> WindowShape:
        return Window(self.radius)
