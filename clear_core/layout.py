"""Where each token stands: FLUX's joint sequence of text, image and reference images.

    [ text : T ] [ image, row-major : H x W ] [ reference 1 : H1 x W1 ] [ reference 2 ] ...

One FLUX.1 image token covers 16 x 16 pixels, so a 1024 px image is a 64 x 64 grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from torch import Tensor

Index = TypeVar("Index", int, Tensor)


@dataclass(frozen=True, slots=True)
class Grid:
    """A row-major grid of tokens, in tokens (not pixels)."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a token grid needs at least 1 x 1 tokens, got {self.height} x {self.width}")

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def rows(self) -> Band:
        """All rows, as a band."""
        return Band(0, self.height)

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


@dataclass(frozen=True, slots=True)
class Band:
    """Rows `start` up to, not including, `stop` of a grid."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a band needs 0 <= start < stop, got start {self.start}, stop {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def grown(self, halo: int, grid: Grid) -> Band:
        """This band and `halo` rows on either side, clipped at the grid's border."""
        return Band(max(0, self.start - halo), min(grid.height, self.stop + halo))

    def joined(self, other: Band) -> Band:
        """The rows from the first to the last of two bands."""
        return Band(min(self.start, other.start), max(self.stop, other.stop))


@dataclass(frozen=True, slots=True)
class GridTokens:
    """Some rows of one grid, with all their columns, and where their tokens start in a sequence."""

    grid: Grid
    rows: Band
    start: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.grid.width

    @property
    def tokens(self) -> int:
        return len(self.rows) * self.grid.width

    @property
    def stop(self) -> int:
        return self.start + self.tokens

    @property
    def span(self) -> slice:
        """The tokens in their sequence."""
        return slice(self.start, self.stop)


class TokenSlices(NamedTuple):
    """Where text, image rows and references stand in one sequence. A kind that is absent has an empty slice."""

    text: slice
    image: slice
    references: slice


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The complete sequence that one attention layer works on.

    text: number of text tokens, 0 or more. It changes with the prompt and with plugins that
        append tokens, so every call counts it anew.
    image: the grid that is being denoised.
    references: grids of reference images (Kontext), each with its own size.
    """

    text: int
    image: Grid
    references: tuple[Grid, ...] = ()

    def __post_init__(self) -> None:
        if self.text < 0:
            raise ValueError(f"the text length cannot be negative, got {self.text}")

    def __str__(self) -> str:
        references = "".join(f" + {grid} reference" for grid in self.references)
        return f"{self.text} text + {self.image} image{references} tokens"

    @classmethod
    def of_sequence(cls, tokens: int, image: Grid, references: tuple[Grid, ...] = ()) -> TokenLayout | None:
        """The layout of a sequence of `tokens` whose text is all that is not image or reference.

        None where the sequence is too short for its grids.
        """
        without_text = cls(0, image, references)
        text = tokens - without_text.tokens
        return None if text < 0 else replace(without_text, text=text)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The image, then the references."""
        return (self.image, *self.references)

    @property
    def reference_tokens(self) -> int:
        return sum(grid.tokens for grid in self.references)

    @property
    def tokens(self) -> int:
        return self.text + self.image.tokens + self.reference_tokens

    def slices(self, rows: Band | None = None) -> TokenSlices:
        """Text, image and references in the complete sequence. rows: only these rows of the image; None is all."""
        rows = self.image.rows if rows is None else rows
        start, width = self.text, self.image.width
        image = slice(start + rows.start * width, start + rows.stop * width)
        return TokenSlices(slice(0, start), image, slice(start + self.image.tokens, self.tokens))


def same_place(index: Index, size: int, other_size: int) -> Index:
    """The cell of an axis of `other_size` cells that holds the centre of cell `index` of `size`.

    For one index or a tensor of them. Integer arithmetic, so that every backend agrees exactly; the
    identity for equal sizes.
    """
    return (2 * index + 1) * other_size // (2 * size)
