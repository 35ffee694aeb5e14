"""The attention pattern: a layout, a window, and which tokens are among the queries and the keys.

| query | keys it attends to |
|---|---|
| text | all text, all image and reference tokens; never the down-sampled ones |
| image or reference token | all text; the window around it in every grid; all down-sampled tokens |

In a grid of another size the window lies around the same relative position. With `references="all"` image and
reference queries attend to every reference token instead. Down-sampled tokens are those of the image that is
being denoised, never of references.

The queries may be a band of the image's rows, and so may the keys. On one device both are all rows; each band
of a split image is the same pattern with other rows. Coordinates are always those of the complete image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .flux import HEAD_DIM, HEADS
from .layout import Band, GridTokens, TokenLayout, TokenSlices
from .pooling import pooled_grid
from .window import Window, WindowShape

ReferenceView = Literal["window", "all"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class LocalPattern:
    """What one call of local attention computes, without its tensors. Hashable, so that plans can be cached by it.

    layout: the complete sequence.
    window: the circle around each image query. Another shape only where all rows are queries and keys: where it lies
        may depend on the image's border.
    query_rows: rows of the image among the queries, or None.
    key_rows: rows of the image among the keys, or None; a query's window is clipped to them.
    text_queries, text_keys: whether the text tokens are among the queries, among the keys.
    reference_queries, reference_keys: the same for the reference tokens.
    references: how image and reference queries attend to reference tokens.
    pooled: number of down-sampled tokens, 0 for none. They are keys only.

    Queries are ordered [text] [image rows] [references], and so are keys.
    """

    layout: TokenLayout
    window: WindowShape
    query_rows: Band | None
    key_rows: Band | None
    text_queries: bool = True
    reference_queries: bool = True
    text_keys: bool = True
    reference_keys: bool = True
    references: ReferenceView = "window"
    pooled: int = 0
    _remembered: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, band in (("query", self.query_rows), ("key", self.key_rows)):
            if band is not None and band.stop > self.layout.image.height:
                raise ValueError(
                    f"the {name} rows {band.start}..{band.stop} reach beyond the image's "
                    f"{self.layout.image.height} rows"
                )
        if self.references not in ("window", "all"):
            raise ValueError(f"references must be 'window' or 'all', got {self.references!r}")
        if not isinstance(self.window, Window) and not self.query_rows == self.key_rows == self.layout.image.rows:
            raise ValueError(f"{self.window} is not a circle: it needs all rows of the image, not a band of them")

    def __hash__(self) -> int:
        # Plans are looked up by it in every layer where there are no bands; hashing all fields takes four times longer.
        rows, key_rows = self.query_rows, self.key_rows
        return hash((
            None if rows is None else (rows.start, rows.stop),
            None if key_rows is None else (key_rows.start, key_rows.stop),
            self.layout.text,
            self.pooled,
        ))  # fmt: skip

    def remembered(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` returned for this key, kept with this very object. For its user to keep small.

        In bands one object goes through all layers. Hashing and comparing patterns, for a look-up in a cache of
        plans, would take longer than the rest of the look-up.
        """
        found: Value | None = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = make()
        return found

    def as_key(self) -> LocalPattern:
        """An equal pattern that remembers nothing: a cache's key would keep alive all that this one remembers."""
        return replace(self)

    @classmethod
    def whole(
        cls, layout: TokenLayout, window: WindowShape, *, references: ReferenceView = "window", pooled: int = 0
    ) -> LocalPattern:
        """Every token is a query and a key: one device, no bands."""
        rows = layout.image.rows
        return cls(layout, window, rows, rows, references=references, pooled=pooled)

    def part(
        self,
        *,
        query_rows: Band | None,
        key_rows: Band | None,
        replicated_queries: bool,
        replicated_keys: bool,
        pooled: int = 0,
    ) -> LocalPattern:
        """This pattern for some of its queries over some of its keys, as one step of attention in bands needs it.

        query_rows, key_rows: rows of the image, None for none.
        replicated_queries, replicated_keys: whether text and reference tokens, which every device has, are among them.
        pooled: number of down-sampled tokens among the keys.
        """
        return replace(
            self,
            query_rows=query_rows,
            key_rows=key_rows,
            text_queries=replicated_queries,
            reference_queries=replicated_queries,
            text_keys=replicated_keys,
            reference_keys=replicated_keys,
            pooled=pooled,
        )

    @property
    def circle(self) -> Window:
        """The window of a pattern that has the method's own. Raises TypeError for another shape."""
        if not isinstance(self.window, Window):
            raise TypeError(f"{self.window} is not a circle")
        return self.window

    @property
    def text_query_tokens(self) -> int:
        return self.layout.text if self.text_queries else 0

    @property
    def text_key_tokens(self) -> int:
        return self.layout.text if self.text_keys else 0

    @cached_property
    def query_grids(self) -> tuple[GridTokens, ...]:
        """The image's rows and the references among the queries, in sequence order."""
        return self._grids(self.text_query_tokens, self.query_rows, self.reference_queries)

    @cached_property
    def key_grids(self) -> tuple[GridTokens, ...]:
        """The image's rows and the references among the keys, in sequence order."""
        return self._grids(self.text_key_tokens, self.key_rows, self.reference_keys)

    def _grids(self, text: int, rows: Band | None, with_references: bool) -> tuple[GridTokens, ...]:
        grids = [] if rows is None else [GridTokens(self.layout.image, rows, text)]
        for grid in self.layout.references if with_references else ():
            grids.append(GridTokens(grid, grid.rows, grids[-1].stop if grids else text))
        return tuple(grids)

    @cached_property
    def windowed_key_grids(self) -> tuple[GridTokens, ...]:
        """The key grids that image queries see through the window. They come first; the rest is shared, as text is."""
        if self.references == "window":
            return self.key_grids
        return () if self.key_rows is None else self.key_grids[:1]

    @cached_property
    def query_tokens(self) -> int:
        return self._tokens(self.text_query_tokens, self.query_rows, self.reference_queries)

    @cached_property
    def key_tokens(self) -> int:
        return self._tokens(self.text_key_tokens, self.key_rows, self.reference_keys)

    def _tokens(self, text: int, rows: Band | None, with_references: bool) -> int:
        image = 0 if rows is None else len(rows) * self.layout.image.width
        return text + image + (self.layout.reference_tokens if with_references else 0)

    @cached_property
    def query_slices(self) -> TokenSlices:
        """Text, image rows and references among the queries."""
        return _slices(self.text_query_tokens, self.query_rows, self.query_grids)

    @cached_property
    def key_slices(self) -> TokenSlices:
        """Text, image rows and references among the keys."""
        return _slices(self.text_key_tokens, self.key_rows, self.key_grids)

    @cached_property
    def shared_references(self) -> slice:
        """The references among the keys that every image query sees completely; empty unless `references` is "all"."""
        return slice(_end(self.windowed_key_grids, self.text_key_tokens), self.key_tokens)

    @cached_property
    def shared_keys(self) -> int:
        """How many keys every image and reference query sees: text, down-sampled tokens, shared references."""
        references = self.shared_references
        return self.text_key_tokens + self.pooled + references.stop - references.start

    def pairs(self) -> int:
        """How many (query, key) pairs the exact mask holds, counted without building it. O(H r + r^2)."""
        total = self.text_query_tokens * self.key_tokens
        for queries in self.query_grids:
            total += queries.tokens * self.shared_keys
            for keys in self.windowed_key_grids:
                dys = _axis_distances(queries.rows, queries.grid.height, keys.rows, keys.grid.height, self.window)
                columns, key_columns = Band(0, queries.grid.width), Band(0, keys.grid.width)
                dxs = _axis_distances(columns, queries.grid.width, key_columns, keys.grid.width, self.window)
                total += sum(
                    ny * nx for dy, ny in dys.items() for dx, nx in dxs.items() if self.window.contains(dy, dx)
                )
        return total

    def mask(self, device: torch.device | str = "cpu", queries: slice = slice(None)) -> Tensor:
        """The exact mask, True where the query sees the key: bool [queries, pooled + keys].

        For small sizes and for checks: it is quadratic in memory. Down-sampled tokens come first.
        `queries` selects rows, so that a caller can go through them in parts.
        """
        q_grid, q_y, q_x = _coordinates(self.query_grids, self.text_query_tokens, device)[:, queries, None]
        kv_grid, kv_y, kv_x = _coordinates(self.key_grids, self.text_key_tokens, device)[:, None, :]
        visible = (q_grid < 0) | (kv_grid < 0)  # a text query, or a text key
        for q, query_tokens in enumerate(self.query_grids):
            for k, key_tokens in enumerate(self.key_grids):
                both = (q_grid == q) & (kv_grid == k)
                if k >= len(self.windowed_key_grids):
                    visible |= both
                    continue
                dy = self.window.centre(q_y, query_tokens.grid.height, key_tokens.grid.height) - kv_y
                dx = self.window.centre(q_x, query_tokens.grid.width, key_tokens.grid.width) - kv_x
                visible |= both & self.window.contains(dy, dx)
        pooled = (q_grid >= 0).expand(-1, self.pooled)
        return torch.cat((pooled, visible), dim=1)


def attention_flops(
    layout: TokenLayout,
    window: Window | None,
    *,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
    down_factor: int = 1,
    references: ReferenceView = "window",
) -> int:
    """Floating-point operations of one attention layer: 4 * heads * head_dim for each visible pair.

    Two multiply-adds per pair and channel, one for q.k and one for p.v; the softmax is not counted, as in table 1
    of arXiv 2412.16112. `window=None` is dense attention.
    """
    if window is None:
        return 4 * heads * head_dim * layout.tokens**2
    pooled = pooled_grid(layout.image, down_factor).tokens if down_factor > 1 else 0
    pattern = LocalPattern.whole(layout, window, references=references, pooled=pooled)
    return 4 * heads * head_dim * pattern.pairs()


def _axis_distances(queries: Band, size: int, keys: Band, key_size: int, window: WindowShape) -> Counter[int]:
    """For each distance within the window's halo along one axis, how many (query, key) pairs lie at it."""
    distances: Counter[int] = Counter()
    reach = window.halo
    for query in range(queries.start, queries.stop):
        centre = window.centre(query, size, key_size)
        distances.update(
            centre - key for key in range(max(keys.start, centre - reach), min(keys.stop, centre + reach + 1))
        )
    return distances


def _end(grids: tuple[GridTokens, ...], text: int) -> int:
    """Where a sequence of text and these grids ends."""
    return grids[-1].stop if grids else text


def _slices(text: int, rows: Band | None, grids: tuple[GridTokens, ...]) -> TokenSlices:
    image_end = text if rows is None else grids[0].stop
    return TokenSlices(slice(0, text), slice(text, image_end), slice(image_end, _end(grids, text)))


def _coordinates(grids: tuple[GridTokens, ...], text: int, device: torch.device | str) -> Tensor:
    """Of each token in order: the index of its grid (-1 for text), its row and its column. int64 [3, N]."""
    parts = [torch.full((3, text), -1, dtype=torch.int64, device=device)]
    for index, tokens in enumerate(grids):
        height, width = tokens.shape
        y = torch.arange(tokens.rows.start, tokens.rows.stop, device=device).repeat_interleave(width)
        x = torch.arange(width, device=device).repeat(height)
        parts.append(torch.stack((torch.full_like(y, index), y, x)))
    return torch.cat(parts, dim=1)
