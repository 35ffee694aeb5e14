"""Where queries and keys lie relative to each other: all that a plan of tiles or a window mask depends on.

A plan is cached by this, not by rows of the image. All inner bands of an image then share one plan: band 7 of 64 sees
its neighbours' rows as band 8 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from ..cache import BoundedCache
from ..layout import Band, Grid
from ..pattern import LocalPattern
from ..window import WindowShape


@dataclass(frozen=True, slots=True)
class GridPair:
    """The rows of one grid that are queries and the rows of one grid that are keys, every column of both."""

    query: Grid
    query_rows: Band
    key: Grid
    key_rows: Band

    def __hash__(self) -> int:
        # Of the rows alone, which is where pairs differ: looked up in every layer where there are no bands.
        rows, keys = self.query_rows, self.key_rows
        return hash((rows.start, rows.stop, keys.start, keys.stop))

    def normalised(self) -> GridPair:
        """The pair with the same geometry that is nearest to the top, in grids no higher than it needs.

        Two pairs have equal plans if these are equal. `layout.same_place` depends on the ratio of the two heights
        alone, and a shift by its period (one row where they are equal) moves queries and centres alike.
        """
        common = gcd(self.query.height, self.key.height)
        step, key_step = self.query.height // common, self.key.height // common
        shift = min(self.query_rows.start // step, self.key_rows.start // key_step)
        rows = _shifted(self.query_rows, -shift * step)
        key_rows = _shifted(self.key_rows, -shift * key_step)
        periods = max(-(-rows.stop // step), -(-key_rows.stop // key_step))
        return GridPair(
            Grid(periods * step, self.query.width), rows, Grid(periods * key_step, self.key.width), key_rows
        )


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the mask of a pattern depends on; patterns of equal geometry have equal masks and plans.

    queries: rows and columns of each query grid, also of one that sees no key through the window. keys: tokens.
    pairs: for each query grid, it with each key grid that it sees through the window; normalised.
    text_queries, text_keys, references, pooled: tokens among the queries that see all keys, and among the keys that
    all queries see; references are those without a window.
    """

    window: WindowShape
    queries: tuple[tuple[int, int], ...]
    keys: int
    pairs: tuple[tuple[GridPair, ...], ...]
    text_queries: int
    text_keys: int
    references: int
    pooled: int


class Geometries:
    """The geometries of the patterns used last. A step in bands uses two patterns for each band."""

    def __init__(self) -> None:
        self._found: BoundedCache[LocalPattern, Geometry] = BoundedCache(1024, as_key=LocalPattern.as_key)

    def of(self, pattern: LocalPattern) -> Geometry:
        return pattern.remembered(self, lambda: self._found.get(pattern, lambda: geometry_of(pattern)))


def geometry_of(pattern: LocalPattern) -> Geometry:
    """The geometry of a pattern."""
    keys = pattern.windowed_key_grids
    references = pattern.shared_references
    return Geometry(
        pattern.window,
        tuple(query.shape for query in pattern.query_grids),
        pattern.key_tokens,
        tuple(
            tuple(GridPair(query.grid, query.rows, key.grid, key.rows).normalised() for key in keys)
            for query in pattern.query_grids
        ),
        pattern.text_query_tokens,
        pattern.text_key_tokens,
        references.stop - references.start,
        pattern.pooled,
    )


def _shifted(rows: Band, by: int) -> Band:
    return Band(rows.start + by, rows.stop + by)
