"""Tiles of queries and the box of keys around each: the geometry of the `sdpa` backend.

The bounding box of a window is separable, so each axis is tiled on its own and a 2-D tile is a pair of 1-D tiles.
Along an axis most tiles differ only by a shift: such a run of tiles becomes one batched call. A 128-token axis
with tiles of 16 and r = 8 has three runs: the first tile, whose window is clipped, six inner ones, and the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from ...layout import Band
from ...pattern import LocalPattern
from ...window import WindowShape
from ..on_device import upload


@dataclass(frozen=True, slots=True)
class KeySpan:
    """Keys of a run's first tile along one axis, and their shift from tile to tile.

    start: relative to the first key row that is present. length 0: the tile sees none of this grid.
    centres: for each query of the tile, the centre of its window relative to the first key.
    """

    start: int
    length: int
    step: int
    centres: tuple[int, ...]

    @property
    def reach(self) -> int:
        """The largest distance from a query's centre to a key; 0 where there are no keys."""
        return max((max(centre, self.length - 1 - centre) for centre in self.centres if self.length), default=0)


@dataclass(frozen=True, slots=True)
class AxisRun:
    """A run: `count` adjacent tiles of `length` queries each with the same geometry of keys.

    start: relative to the first query. keys: one span for each key grid.
    """

    start: int
    length: int
    count: int
    keys: tuple[KeySpan, ...]

    @property
    def stop(self) -> int:
        return self.start + self.length * self.count


@dataclass(frozen=True)
class TileGroup:
    """2-D tiles of the same geometry: every tile of `rows` with every tile of `columns`."""

    rows: AxisRun
    columns: AxisRun

    @property
    def tiles(self) -> int:
        return self.rows.count * self.columns.count

    @property
    def queries(self) -> int:
        """Queries of one tile."""
        return self.rows.length * self.columns.length

    @cached_property
    def box_tokens(self) -> tuple[int, ...]:
        """Keys of one tile in each key grid: the window's bounding box, clipped."""
        return tuple(y.length * x.length for y, x in zip(self.rows.keys, self.columns.keys, strict=True))

    def fully_visible(self, window: WindowShape) -> bool:
        """Whether no mask is needed, because every query of a tile sees every key of its boxes.

        Exact for the circle; of a shape that reaches further on one side than on the other it may say False too often.
        """
        spans = zip(self.rows.keys, self.columns.keys, strict=True)
        reaches = [(y.reach, x.reach) for y, x in spans if y.length and x.length]
        return all(window.contains(y, x) and window.contains(-y, -x) for y, x in reaches)

    def mask(self, window: WindowShape, device: torch.device) -> Tensor:
        """Which keys of the boxes each query of a tile sees: bool [queries, sum of box_tokens].

        The same for every tile of the group.
        """
        parts = []
        for y, x in zip(self.rows.keys, self.columns.keys, strict=True):
            dy, dx = _distances(y, device)[:, None, :, None], _distances(x, device)[None, :, None, :]
            parts.append(window.contains(dy, dx).flatten(2, 3).flatten(0, 1))
        return torch.cat(parts, dim=1)


def tile_groups(pattern: LocalPattern, tile: tuple[int, int]) -> tuple[tuple[TileGroup, ...], ...]:
    """For each query grid of the pattern, its tiles in groups. tile: (rows, columns) of queries."""
    return tuple(tuple(_grid_groups(pattern, index, tile)) for index in range(len(pattern.query_grids)))


def _grid_groups(pattern: LocalPattern, index: int, tile: tuple[int, int]) -> Iterator[TileGroup]:
    queries, window = pattern.query_grids[index], pattern.window
    width = queries.grid.width
    key_rows = tuple((keys.grid.height, keys.rows) for keys in pattern.windowed_key_grids)
    key_columns = tuple((keys.grid.width, Band(0, keys.grid.width)) for keys in pattern.windowed_key_grids)
    row_runs = axis_runs(queries.rows, queries.grid.height, key_rows, window, tile[0])
    column_runs = axis_runs(Band(0, width), width, key_columns, window, tile[1])
    for row_run, column_run in product(row_runs, column_runs):
        yield TileGroup(row_run, column_run)


def axis_runs(
    queries: Band, size: int, keys: tuple[tuple[int, Band], ...], window: WindowShape, tile: int
) -> tuple[AxisRun, ...]:
    """Cut one axis into tiles and join adjacent ones of the same geometry into runs.

    queries: the positions among the queries, of an axis of `size` positions.
    keys: for each key grid, the size of its axis and the positions present.
    window: where the centre of each query lies, and how far from it a key is seen.
    """
    runs: list[AxisRun] = []
    for start in range(queries.start, queries.stop, tile):
        stop = min(start + tile, queries.stop)
        spans = tuple(_key_span(range(start, stop), size, key_size, band, window) for key_size, band in keys)
        single = AxisRun(start - queries.start, stop - start, 1, spans)
        joined = _join(runs[-1], single) if runs else None
        if joined is None:
            runs.append(single)
        else:
            runs[-1] = joined
    return tuple(runs)


def _key_span(queries: range, size: int, key_size: int, band: Band, window: WindowShape) -> KeySpan:
    centres, reach = [window.centre(query, size, key_size) for query in queries], window.halo
    start = max(band.start, centres[0] - reach)
    stop = min(band.stop, centres[-1] + reach + 1)
    if stop <= start:
        return KeySpan(0, 0, 0, tuple(0 for _ in centres))
    return KeySpan(start - band.start, stop - start, 0, tuple(centre - start for centre in centres))


def _join(run: AxisRun, tile: AxisRun) -> AxisRun | None:
    """The run with one more tile, or None if that tile has another geometry or breaks the step of the run."""
    if tile.length != run.length:
        return None
    spans = []
    for span, other in zip(run.keys, tile.keys, strict=True):
        if (span.length, span.centres) != (other.length, other.centres):
            return None
        # The second tile of a run sets the step; the following ones must keep it.
        step = other.start - span.start if run.count == 1 else span.step
        if other.start != span.start + step * run.count or step < 0:
            return None
        spans.append(replace(span, step=step))
    return replace(run, count=run.count + 1, keys=tuple(spans))


def _distances(span: KeySpan, device: torch.device) -> Tensor:
    """From each query's centre to each key of a span: int64 [queries, keys]."""
    first, last = span.centres[0], span.centres[-1]
    if span.centres == tuple(range(first, last + 1)):  # within one image: made on the device, nothing to copy
        centres = torch.arange(first, last + 1, device=device)
    else:
        centres = upload(torch.tensor(span.centres), device)
    return centres[:, None] - torch.arange(span.length, device=device)[None, :]
