"""The circular window of CLEAR (arXiv 2412.16112, section 3.2).

An image token at (y, x) sees the image tokens at (y', x') with

    (y - y')^2 + (x - x')^2 < r^2

strictly, clipped at the image's border and never shifted. r = 4, an interior query Q:

    . . . . . . . . .
    . . o o o o o . .
    . o o o o o o o .
    . o o o o o o o .
    . o o o Q o o o .
    . o o o o o o o .
    . o o o o o o o .
    . . o o o o o . .
    . . . . . . . . .
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import overload

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A circle of `radius` image tokens around each query."""

    radius: int

    def __post_init__(self) -> None:
        if self.radius < 1:
            raise ValueError(
                f"the window's radius must be 1 or more, got {self.radius}: with 0 a query would not even see itself"
            )

    @property
    def halo(self) -> int:
        """How many rows or columns away the furthest visible token lies: r - 1."""
        return self.radius - 1

    @property
    def tokens(self) -> int:
        """Tokens seen by a query far from the border: 193 for r = 8, 793 for 16, 3205 for 32."""
        return sum(2 * self.half_width(dy) + 1 for dy in range(-self.halo, self.halo + 1))

    def half_width(self, dy: int) -> int:
        """The largest dx that is visible `dy` rows away; -1 where none is."""
        room = self.radius**2 - dy**2
        return isqrt(room - 1) if room > 0 else -1

    def tokens_at(self, row: int, column: int, height: int, width: int) -> int:
        """Tokens seen by the query at `row`, `column` of a grid of `height` x `width`: clipped at its border."""
        total = 0
        for y in range(max(0, row - self.halo), min(height, row + self.halo + 1)):
            reach = self.half_width(y - row)
            total += min(column + reach + 1, width) - max(column - reach, 0)
        return total

    @overload
    def contains(self, dy: int, dx: int) -> bool: ...
    @overload
    def contains(self, dy: Tensor, dx: Tensor) -> Tensor: ...
    def contains(self, dy: int | Tensor, dx: int | Tensor) -> bool | Tensor:
        """Whether a query sees the key `dy` rows and `dx` columns away: the definition that all geometry uses.

        Integers, or integer tensors that broadcast against each other (the result is bool, of their joint shape).
        """
        return dy * dy + dx * dx < self.radius**2
