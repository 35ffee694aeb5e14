"""The part of an image to load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .limits import within

LONGEST: Final = 65536
"""Pixels a side, at most."""

MOST: Final = 2**30
"""Pixels of an image, at most: a header that is damaged or made for it cannot ask for any more memory."""


@dataclass(frozen=True, slots=True)
class Region:
    """In pixels; a width or height of 0 reaches to the edge. Raises ValueError for values that no image has."""

    left: int = 0
    top: int = 0
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        within("left", self.left, 0, LONGEST - 1)
        within("top", self.top, 0, LONGEST - 1)
        within("width", self.width, 0, LONGEST)
        within("height", self.height, 0, LONGEST)

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """left, top, right, bottom in an image of (width, height). Raises ValueError where it reaches out of it."""
        left, right = _span("left", "width", "wide", self.left, self.width, size[0])
        top, bottom = _span("top", "height", "high", self.top, self.height, size[1])
        return left, top, right, bottom


def _span(start_name: str, length_name: str, word: str, start: int, length: int, side: int) -> tuple[int, int]:
    if start >= side:
        raise ValueError(
            f"{start_name} is {start}, outside the image, which is {side} pixels {word}; allowed is 0 to {side - 1}"
        )
    if start + length > side:
        raise ValueError(
            f"{length_name} is {length} from {start_name} {start}, but the image is {side} pixels {word}; allowed is 1 "
            f"to {side - start}, or 0 for all up to the edge"
        )
    return start, start + length if length else side
