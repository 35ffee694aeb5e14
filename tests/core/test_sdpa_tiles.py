"""Tiles and their boxes: every query once, every visible key inside, nothing copied that no query sees."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from clear_core.backends.sdpa.tiles import axis_runs, tile_groups
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window

grids = st.builds(Grid, st.integers(1, 40), st.integers(1, 40))


@given(image=grids, reference=st.none() | grids, radius=st.integers(1, 70), tile=st.sampled_from([4, 16]))
def test_a_mask_is_left_out_exactly_when_it_would_hide_nothing(
    image: Grid, reference: Grid | None, radius: int, tile: int
) -> None:
    layout = TokenLayout(0, image, () if reference is None else (reference,))
    for groups in tile_groups(LocalPattern.whole(layout, Window(radius)), (tile, tile)):
        for group in groups:
            assert group.sees_all(radius) == bool(group.mask(radius, torch.device("cpu")).all())


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
    for run in axis_runs(queries, size, ((key_size, keys),), reach, tile):
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
