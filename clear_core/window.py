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
from typing import Protocol, overload

from torch import Tensor

from .layout import Index, same_place


class WindowShape(Protocol):
    """Which keys a query sees around a centre. `Window` is the method's; `clear_core.strategies` has others.

    A shape is hashable, so that plans can be cached by it, and without holes along an axis: of two keys on a line
    through the centre the nearer one is visible if the farther one is.
    """

    @property
    def halo(self) -> int:
        """How many rows or columns away from the centre the furthest visible key lies."""
        ...

    def centre(self, index: Index, size: int, key_size: int) -> Index:
        """The centre along one axis, a position of the keys' axis. It never decreases with the index.

        index: a position, or an integer tensor of them, of the queries' axis of `size`. key_size: of the keys' axis.
        """
        ...

    @overload
    def contains(self, dy: int, dx: int) -> bool: ...
    @overload
    def contains(self, dy: Tensor, dx: Tensor) -> Tensor: ...
    def contains(self, dy: int | Tensor, dx: int | Tensor) -> bool | Tensor:
        """Whether a key is visible whose centre lies `dy` rows below and `dx` columns right of it.

        Integers, or integer tensors that broadcast against each other (the result is bool, of their joint shape).
        """
        ...


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

    def centre(self, index: Index, size: int, key_size: int) -> Index:
        """The query's own place: never shifted at the border."""
        return same_place(index, size, key_size)

    @overload
    def contains(self, dy: int, dx: int) -> bool: ...
    @overload
    def contains(self, dy: Tensor, dx: Tensor) -> Tensor: ...
    def contains(self, dy: int | Tensor, dx: int | Tensor) -> bool | Tensor:
        """Whether a query sees the key `dy` rows and `dx` columns away: the definition that all geometry uses.

        Integers, or integer tensors that broadcast against each other (the result is bool, of their joint shape).
        """
        return dy * dy + dx * dx < self.radius**2
