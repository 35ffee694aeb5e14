"""The plan of tiles against the window itself: every visible pair once, no box for nothing, masks only where needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clear_core.backends.triton.tile_plan import GridPair, TilePlan, tile_plan
from clear_core.layout import Band, Grid, same_place
from clear_core.window import Window


def visible(grids: GridPair, window: Window) -> torch.Tensor:
    """The mask, pair by pair: bool [query rows, query columns, key rows, key columns]."""
    y = same_place(torch.arange(grids.query_rows.start, grids.query_rows.stop), grids.query.height, grids.key.height)
    x = same_place(torch.arange(grids.query.width), grids.query.width, grids.key.width)
    dy = y[:, None] - torch.arange(grids.key_rows.start, grids.key_rows.stop)
    dx = x[:, None] - torch.arange(grids.key.width)
    return dy.square()[:, None, :, None] + dx.square()[None, :, None, :] < window.radius**2


def check(plan: TilePlan, grids: GridPair, window: Window) -> None:
    pairs = visible(grids, window)
    th, tw = plan.tile
    kh, kw = plan.box
    across = -(-grids.query.width // tw)
    assert plan.tiles == across * -(-len(grids.query_rows) // th)
    seen = torch.zeros_like(pairs, dtype=torch.int64)
    previous_end = full = 0
    for tile in range(plan.tiles):
        begin, masked, end = plan.ranges[:, tile].tolist()
        assert previous_end == begin <= masked <= end
        previous_end, full = end, full + masked - begin
        row, column = tile // across * th, tile % across * tw
        for number, (y, x) in enumerate(plan.boxes[begin:end].tolist(), begin):
            assert y >= 0
            assert x >= 0
            box = (slice(row, row + th), slice(column, column + tw), slice(y, y + kh), slice(x, x + kw))
            assert pairs[box].any(), "a box without a visible key"
            reaches_out = y + kh > len(grids.key_rows) or x + kw > grids.key.width
            assert (number < masked) == (bool(pairs[box].all()) and not reaches_out)
            seen[box] += 1
    assert previous_end == plan.boxes.shape[0]
    assert plan.full_boxes == full
    assert plan.executed_pairs() == previous_end * th * tw * kh * kw
    assert plan.ranges.dtype == plan.boxes.dtype == torch.int32
    assert seen[pairs].eq(1).all(), "every visible pair is computed exactly once"


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    key_height=st.integers(1, 30),
    key_width=st.integers(1, 30),
    radius=st.integers(1, 40),
    tile=st.sampled_from([(8, 16), (4, 4), (3, 5)]),
    box=st.sampled_from([(8, 8), (4, 16), (1, 3)]),
    data=st.data(),
)
def test_every_visible_pair_is_visited_once(
    height: int,
    width: int,
    key_height: int,
    key_width: int,
    radius: int,
    tile: tuple[int, int],
    box: tuple[int, int],
    data: st.DataObject,
) -> None:
    bands = []
    for size in (height, key_height):
        start = data.draw(st.integers(0, size - 1))
        bands.append(Band(start, data.draw(st.integers(start + 1, size))))
    grids = GridPair(Grid(height, width), bands[0], Grid(key_height, key_width), bands[1])
    check(tile_plan(grids, Window(radius), tile, box), grids, Window(radius))


@pytest.mark.parametrize("tile", [(8, 16), (4, 4), (3, 5)])
@pytest.mark.parametrize("box", [(8, 8), (4, 4), (1, 3)])
@pytest.mark.parametrize("radius", [4, 9, 15])
def test_an_image_of_many_tiles(tile: tuple[int, int], box: tuple[int, int], radius: int) -> None:
    """With full boxes on every side of a tile, and with partial ones."""
    grid = Grid(27, 25)
    for rows in (grid.rows, Band(6, 20)):
        grids = GridPair(grid, rows, grid, rows.grown(radius - 1, grid))
        check(tile_plan(grids, Window(radius), tile, box), grids, Window(radius))


def test_a_plan_moves_to_a_device() -> None:
    grid = Grid(9, 7)
    plan = tile_plan(GridPair(grid, grid.rows, grid, grid.rows), Window(3), (3, 5), (1, 3))
    moved = plan.to(torch.device("meta"))
    assert (moved.tile, moved.box, moved.tiles) == ((3, 5), (1, 3), 6)
    assert moved.ranges.is_meta and moved.boxes.is_meta and not plan.boxes.is_meta


@pytest.mark.parametrize(("radius", "keys"), [(8, 768), (16, 1856), (32, 5312)])
def test_an_inner_tile_executes_what_the_design_says(radius: int, keys: int) -> None:
    """Keys of one tile of 8 x 16 in boxes of 8 x 8, far from the border; needed: 193, 793, 3205 for each query."""
    grid = Grid(256, 256)
    plan = tile_plan(GridPair(grid, grid.rows, grid, grid.rows), Window(radius), (8, 16), (8, 8))
    tile = plan.tiles // 2 + 8  # in the middle of its row
    begin, _, end = plan.ranges[:, tile].tolist()
    assert (end - begin) * 64 == keys
