"""How large an upscale's result is to be: by its pixels, its long side, or a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .limits import one_of, within
from .stages import LARGEST_SIDE

MEGAPIXELS: Final = "megapixels"
LONG_SIDE: Final = "long side"
SCALE: Final = "scale"
SIZE_BY: Final = (MEGAPIXELS, LONG_SIDE, SCALE)
LEAST_SIDE: Final = 64  # pixels
LEAST_SCALE: Final = 0.1
LARGEST_SCALE: Final = 64.0


@dataclass(frozen=True)
class Target:
    """Inputs of the node; only the one that `size_by` names counts. long_side: pixels. scale: of each side."""

    megapixels: float
    size_by: str = MEGAPIXELS
    long_side: int = 4096
    scale: float = 4.0

    @property
    def words(self) -> str:
        """The input that counts and its value, for messages."""
        return {
            MEGAPIXELS: f"target_megapixels {self.megapixels:g}",
            LONG_SIDE: f"long_side {self.long_side}",
            SCALE: f"scale {self.scale:g}",
        }[self.size_by]

    def megapixels_of(self, width: int, height: int) -> float:
        """The megapixels to which an image of width x height pixels is brought.

        Raises ValueError for more than the largest side, and for values that mean nothing.
        """
        one_of("size_by", self.size_by, SIZE_BY)
        if self.size_by == MEGAPIXELS:
            return self.megapixels
        within("long_side", self.long_side, LEAST_SIDE, LARGEST_SIDE)
        within("scale", self.scale, LEAST_SCALE, LARGEST_SCALE)
        scale = self.scale if self.size_by == SCALE else self.long_side / max(width, height)
        longest = round(max(width, height) * scale)
        if longest > LARGEST_SIDE:
            raise ValueError(
                f"{self.words} would make {round(width * scale)} x {round(height * scale)} pixels of this {width} x "
                f"{height} image; {LARGEST_SIDE} a side is the most. Choose less."
            )
        return width * height * scale**2 / 1e6
