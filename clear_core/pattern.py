"""Who sees whom: a layout, a window, and which rows of the image ask and answer.

| query | keys it sees |
|---|---|
| text | all text, all image and reference tokens; never the down-sampled ones |
| image or reference token | all text; the window around its place in every grid; all down-sampled tokens |

A reference image of another size is seen through the window at the same relative place. With
`references="all"` image and reference queries see every reference token instead. Down-sampled tokens are
those of the image that is being denoised, never of references.

The queries may be a band of the image's rows, and so may the keys: one device is the band that
covers everything, and several bands need nothing else. Positions are always those of the whole
image.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .flux import HEAD_DIM, HEADS
from .layout import Band, Grid, TokenLayout, same_place
from .pooling import pooled_grid
from .window import Window

ReferenceView = Literal["window", "all"]


@dataclass(frozen=True, slots=True)
class LocalPattern:
    """What one call of local attention computes, without its tensors. Hashable: the key of plans.

    layout: the whole sequence.
    window: the circle around each image query.
    query_rows: rows of the image among the queries, or None.
    key_rows: rows of the image among the keys, or None; a query's window is cut to them.
    text_queries, text_keys: whether the text tokens are among the queries, among the keys.
    reference_queries, reference_keys: whether the reference tokens are.
    references: how image and reference queries see reference tokens.
    pooled: number of down-sampled tokens, 0 for none. They are keys only.

    Queries are ordered [text] [image rows] [references]; keys [text] [image rows] [references].
    """

    layout: TokenLayout
    window: Window
    query_rows: Band | None
    key_rows: Band | None
    text_queries: bool = True
    reference_queries: bool = True
    text_keys: bool = True
    reference_keys: bool = True
    references: ReferenceView = "window"
    pooled: int = 0

    def __post_init__(self) -> None:
        for name, band in (("query", self.query_rows), ("key", self.key_rows)):
            if band is not None and band.stop > self.layout.image.height:
                raise ValueError(
                    f"the {name} rows {band.start}..{band.stop} reach beyond the image's "
                    f"{self.layout.image.height} rows"
                )
        if self.references not in ("window", "all"):
            raise ValueError(f"references must be 'window' or 'all', got {self.references!r}")

    @classmethod
    def whole(
        cls, layout: TokenLayout, window: Window, *, references: ReferenceView = "window", pooled: int = 0
    ) -> LocalPattern:
        """Every token asks every token: one device, no bands."""
        rows = layout.image.rows
        return cls(layout, window, rows, rows, references=references, pooled=pooled)

    @property
    def text_query_tokens(self) -> int:
        return self.layout.text if self.text_queries else 0

    @property
    def text_key_tokens(self) -> int:
        return self.layout.text if self.text_keys else 0

    @property
    def query_grids(self) -> tuple[tuple[Grid, Band], ...]:
        """The grids whose tokens ask, each with the rows that do, in sequence order."""
        return self._grids(self.query_rows, self.reference_queries)

    @property
    def key_grids(self) -> tuple[tuple[Grid, Band], ...]:
        """The grids whose tokens are keys, each with the rows that are, in sequence order."""
        return self._grids(self.key_rows, self.reference_keys)

    def _grids(self, rows: Band | None, with_references: bool) -> tuple[tuple[Grid, Band], ...]:
        image = () if rows is None else ((self.layout.image, rows),)
        references = self.layout.references if with_references else ()
        return (*image, *((grid, grid.rows) for grid in references))

    @property
    def windowed_key_grids(self) -> tuple[tuple[Grid, Band], ...]:
        """The key grids seen through the window; the others are seen whole, as the text is."""
        if self.references == "window":
            return self.key_grids
        return () if self.key_rows is None else self.key_grids[:1]

    @property
    def query_tokens(self) -> int:
        return self.text_query_tokens + sum(len(rows) * grid.width for grid, rows in self.query_grids)

    @property
    def key_tokens(self) -> int:
        return self.text_key_tokens + sum(len(rows) * grid.width for grid, rows in self.key_grids)

    @property
    def shared_keys(self) -> int:
        """Keys that every image and reference query sees: text, down-sampled tokens, references seen whole."""
        whole = self.key_grids[len(self.windowed_key_grids) :]
        return self.text_key_tokens + self.pooled + sum(len(rows) * grid.width for grid, rows in whole)

    def pairs(self) -> int:
        """How many (query, key) pairs the exact mask holds, counted without building it. O(H r + r^2)."""
        total = self.text_query_tokens * self.key_tokens
        for grid, rows in self.query_grids:
            total += len(rows) * grid.width * self.shared_keys
            for key_grid, key_rows in self.windowed_key_grids:
                dys = _axis_distances(rows, grid.height, key_rows, key_grid.height, self.window.halo)
                columns, key_columns = Band(0, grid.width), Band(0, key_grid.width)
                dxs = _axis_distances(columns, grid.width, key_columns, key_grid.width, self.window.halo)
                total += sum(
                    ny * nx for dy, ny in dys.items() for dx, nx in dxs.items() if self.window.contains(dy, dx)
                )
        return total

    def mask(self, device: torch.device | str = "cpu", queries: slice = slice(None)) -> Tensor:
        """The exact mask, True where the query sees the key: bool [queries, pooled + keys].

        For small sizes and for checking: it is quadratic in memory. Down-sampled tokens come first.
        `queries` cuts rows out, so that a caller can go through them in parts.
        """
        asks = _coordinates(self.query_grids, self.text_query_tokens, device)[:, queries]
        gives = _coordinates(self.key_grids, self.text_key_tokens, device)
        ask_grid, give_grid = asks[0][:, None], gives[0][None, :]
        visible = (ask_grid < 0) | (give_grid < 0)  # text asks or answers
        for q, (query_grid, _) in enumerate(self.query_grids):
            for k, (key_grid, _) in enumerate(self.key_grids):
                both = (ask_grid == q) & (give_grid == k)
                if k >= len(self.windowed_key_grids):
                    visible |= both
                    continue
                dy = same_place(asks[1], query_grid.height, key_grid.height)[:, None] - gives[1][None, :]
                dx = same_place(asks[2], query_grid.width, key_grid.width)[:, None] - gives[2][None, :]
                visible |= both & (dy * dy + dx * dx < self.window.radius**2)
        pooled = (ask_grid >= 0).expand(-1, self.pooled)
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

    Two multiply-adds a pair and channel, one for q.k and one for p.v; the softmax is not counted, as
    in the paper's table 1. `window=None` is dense attention.
    """
    if window is None:
        return 4 * heads * head_dim * layout.tokens**2
    pooled = pooled_grid(layout.image, down_factor).tokens if down_factor > 1 else 0
    pattern = LocalPattern.whole(layout, window, references=references, pooled=pooled)
    return 4 * heads * head_dim * pattern.pairs()


def _axis_distances(queries: Band, size: int, keys: Band, key_size: int, reach: int) -> Counter[int]:
    """For each distance within `reach` along one axis, how many (query, key) pairs lie at it."""
    distances: Counter[int] = Counter()
    for query in range(queries.start, queries.stop):
        centre = same_place(query, size, key_size)
        distances.update(
            key - centre for key in range(max(keys.start, centre - reach), min(keys.stop, centre + reach + 1))
        )
    return distances


def _coordinates(grids: tuple[tuple[Grid, Band], ...], text: int, device: torch.device | str) -> Tensor:
    """Of each token in order: the index of its grid (-1 for text), its row and its column. int64 [3, N]."""
    parts = [torch.full((3, text), -1, dtype=torch.int64, device=device)]
    for index, (grid, rows) in enumerate(grids):
        y = torch.arange(rows.start, rows.stop, device=device).repeat_interleave(grid.width)
        x = torch.arange(grid.width, device=device).repeat(len(rows))
        parts.append(torch.stack((torch.full_like(y, index), y, x)))
    return torch.cat(parts, dim=1)
