"""Tiles and their boxes: every query once, every visible key inside, nothing copied that no query sees."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_core.backends.sdpa.tiles import axis_runs, tile_groups
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window


def distance2(query: tuple[int, int], of: Grid, key: tuple[int, int], to: Grid) -> int:
    """From the position in the key's grid that the query's centre falls on, squared. No division of floats."""
    return sum(
        ((2 * q + 1) * size // (2 * own) - k) ** 2
        for q, own, k, size in zip(query, (of.height, of.width), key, (to.height, to.width), strict=True)
    )


@settings(max_examples=40)
@given(
    image=st.builds(Grid, st.integers(1, 11), st.integers(1, 11)),
    reference=st.none() | st.builds(Grid, st.integers(1, 7), st.integers(1, 7)),
    radius=st.integers(1, 9),
    tile=st.sampled_from([(2, 3), (4, 4)]),
    data=st.data(),
)
def test_every_tile_has_its_mask_pair_by_pair(
    image: Grid, reference: Grid | None, radius: int, tile: tuple[int, int], data: st.DataObject
) -> None:
    """Each query in one tile; in its boxes every key it attends to, under a mask that hides all others."""

    def some_rows() -> Band:
        start = data.draw(st.integers(0, image.height - 1))
        return Band(start, data.draw(st.integers(start + 1, image.height)))

    references = () if reference is None else (reference,)
    pattern = LocalPattern(TokenLayout(0, image, references), Window(radius), some_rows(), some_rows())
    assert pattern.query_rows is not None and pattern.key_rows is not None
    grids = [(image, pattern.query_rows), *((grid, grid.rows) for grid in references)]
    key_grids = [(image, pattern.key_rows), *((grid, grid.rows) for grid in references)]
    for (grid, rows), groups in zip(grids, tile_groups(pattern, tile), strict=True):
        found: list[tuple[int, int]] = []
        for group in groups:
            mask = group.mask(Window(radius), torch.device("cpu"))
            assert mask.shape == (group.queries, sum(group.box_tokens))
            assert group.fully_visible(Window(radius)) == bool(mask.all())
            for down, across in itertools.product(range(group.rows.count), range(group.columns.count)):
                top = rows.start + group.rows.start + down * group.rows.length
                left = group.columns.start + across * group.columns.length
                queries = list(
                    itertools.product(range(top, top + group.rows.length), range(left, left + group.columns.length))
                )
                found += queries
                keys: list[tuple[int, tuple[int, int]]] = []
                for number, ((_, band), y, x) in enumerate(
                    zip(key_grids, group.rows.keys, group.columns.keys, strict=True)
                ):
                    first = (band.start + y.start + down * y.step, x.start + across * x.step)
                    box = itertools.product(range(first[0], first[0] + y.length), range(first[1], first[1] + x.length))
                    keys += [(number, key) for key in box]
                near = [
                    {
                        (number, key)
                        for number, (to, band) in enumerate(key_grids)
                        for key in itertools.product(range(band.start, band.stop), range(to.width))
                        if distance2(query, grid, key, to) < radius**2
                    }
                    for query in queries
                ]
                for visible, row in zip(near, mask.tolist(), strict=True):
                    assert {key for key, shown in zip(keys, row, strict=True) if shown} == visible
        assert sorted(found) == list(itertools.product(range(rows.start, rows.stop), range(grid.width)))


@given(
    size=st.integers(1, 60),
    key_size=st.integers(1, 60),
    reach=st.integers(0, 70),
    tile=st.integers(1, 20),
    data=st.data(),
)
def test_runs_cover_the_queries_and_span_what_they_reach(
    size: int, key_size: int, reach: int, tile: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, size - 1))
    queries = Band(start, data.draw(st.integers(start + 1, size)))
    low = data.draw(st.integers(0, key_size - 1))
    keys = Band(low, data.draw(st.integers(low + 1, key_size)))
    seen: list[int] = []
    for run in axis_runs(queries, size, ((key_size, keys),), Window(reach + 1), tile):
        (span,) = run.keys
        for index in range(run.count):
            first = run.start + index * run.length
            for offset in range(run.length):
                query = queries.start + first + offset
                centre = (2 * query + 1) * key_size // (2 * size)
                visible = {key for key in range(keys.start, keys.stop) if abs(key - centre) <= reach}
                begin = keys.start + span.start + index * span.step
                assert visible <= set(range(begin, begin + span.length))
                if span.length:
                    assert begin + span.centres[offset] == centre
                    # Nothing is copied beyond what the tile's first and last query reach.
                    low_end, high_end = begin + span.centres[0] - reach, begin + span.centres[-1] + reach
                    assert low_end <= begin and begin + span.length - 1 <= high_end
                    assert keys.start <= begin
                    assert begin + span.length <= keys.stop
                seen.append(query)
    assert seen == list(range(queries.start, queries.stop))


def test_an_image_of_equal_tiles_needs_three_runs_an_axis() -> None:
    pattern = LocalPattern.whole(TokenLayout(512, Grid(128, 128)), Window(8))
    (groups,) = tile_groups(pattern, (16, 16))
    assert len(groups) == 9
    assert max(group.tiles for group in groups) == 36
    assert sum(group.tiles for group in groups) == 64


def test_tiles_that_reach_no_key_are_one_run() -> None:
    """Keys are the last four of 64; tiles of 16 queries reach two positions."""
    first, last = axis_runs(Band(0, 64), 64, ((64, Band(60, 64)),), Window(3), 16)
    assert (first.count, first.keys[0].length, first.stop) == (3, 0, 48)
    assert (last.count, last.keys[0].length, last.stop) == (1, 4, 64)


def test_a_tile_without_keys_needs_no_mask() -> None:
    pattern = LocalPattern(TokenLayout(0, Grid(8, 4)), Window(1), Band(0, 2), Band(6, 8))
    (groups,) = tile_groups(pattern, (1, 1))
    assert all(group.box_tokens == (0,) and group.fully_visible(Window(1)) for group in groups)
