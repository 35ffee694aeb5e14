"""Bands, lanes, and the halo that each band needs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_core.bands.plan import BandPlan, all_to_all_bytes, cut_rows, deal, halo_bytes
from clear_core.layout import Band, Grid
from clear_core.window import Window


@given(height=st.integers(1, 200), count=st.integers(1, 64), multiple=st.sampled_from([1, 2, 4]))
def test_bands_cover_the_image_and_none_is_empty(height: int, count: int, multiple: int) -> None:
    bands = cut_rows(height, count, multiple)
    assert bands[0].start == 0
    assert bands[-1].stop == height
    assert all(a.stop == b.start for a, b in itertools.pairwise(bands))
    assert all(band.start % multiple == 0 for band in bands)
    assert len(bands) == min(count, -(-height // multiple))


@given(bands=st.integers(1, 40), shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=8))
def test_every_lane_gets_bands_in_proportion(bands: int, shares: list[float]) -> None:
    owners = deal(bands, shares)
    assert len(owners) == bands
    assert list(owners) == sorted(owners)
    assert set(owners) == set(range(min(bands, len(shares))))
    if bands >= 4 * len(shares) and max(shares) < 2 * min(shares):
        for lane, share in enumerate(shares):
            assert abs(owners.count(lane) - bands * share / sum(shares)) <= 1 + 1e-9


@given(
    height=st.integers(1, 60),
    count=st.integers(1, 20),
    radius=st.integers(1, 40),
    lanes=st.integers(1, 4),
    together=st.booleans(),
)
def test_a_band_needs_the_rows_that_its_window_reaches(
    height: int, count: int, radius: int, lanes: int, together: bool
) -> None:
    bands = cut_rows(height, count)
    plan = BandPlan(Grid(height, 5), bands, deal(len(bands), [1.0] * lanes), Window(radius), together)
    for index, band in enumerate(bands):
        reach = {y for row in range(band.start, band.stop) for y in range(row - radius + 1, row + radius)}
        wanted = {y for y in reach if 0 <= y < height}
        got = [y for rows in plan.needs[index].values() for y in range(rows.start, rows.stop)]
        assert sorted(got) == sorted(wanted)
        assert set(plan.needs[index]) <= set(plan.awaits[index])
        assert not together or len(plan.awaits[index]) == len(bands)
    for band, sends in enumerate(plan.sends):
        users = {plan.lanes[other] for other, needed in enumerate(plan.needs) if band in needed}
        assert set(sends) == users - {plan.lanes[band]}
    for lane in range(plan.lane_count):
        others = {b for i in range(len(bands)) if plan.lanes[i] != lane for b in plan.awaits[i]}
        assert set(plan.borders[lane]) == others & set(plan.bands_of(lane))


def test_a_plan_is_cut_between_down_sampled_cells_and_dealt_by_share() -> None:
    plan = BandPlan.cut(Grid(40, 5), 6, Window(3), down_factor=4, shares=(2.0, 1.0))
    assert [band.start for band in plan.bands] == [0, 4, 12, 20, 24, 32]
    assert plan.lanes == (0, 0, 0, 0, 1, 1)
    assert plan.together
    plain = BandPlan.cut(Grid(40, 5), 2, None)
    assert (plain.lanes, plain.window, plain.together) == ((0, 0), None, False)


def test_without_a_window_every_band_needs_all() -> None:
    plan = BandPlan(Grid(10, 4), cut_rows(10, 3), (0, 0, 1), None)
    assert all(set(needed) == {0, 1, 2} for needed in plan.needs)
    assert plan.rows_seen(1) == Band(0, 10)


def test_a_plan_in_full() -> None:
    """Five bands of four rows, radius 3: each needs two rows of its neighbours. Two lanes."""
    plan = BandPlan(Grid(20, 4), cut_rows(20, 5), (0, 0, 0, 1, 1), Window(3))
    assert plan.bands == (Band(0, 4), Band(4, 8), Band(8, 12), Band(12, 16), Band(16, 20))
    assert plan.lane_count == 2
    assert [plan.bands_of(lane) for lane in (0, 1)] == [(0, 1, 2), (3, 4)]
    assert [plan.rows_seen(band) for band in range(5)] == [
        Band(0, 6),
        Band(2, 10),
        Band(6, 14),
        Band(10, 18),
        Band(14, 20),
    ]
    assert plan.needs[2] == {1: Band(6, 8), 2: Band(8, 12), 3: Band(12, 14)}
    assert plan.awaits == ((0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4))
    # Keys of bands 2 and 3 lie within two rows of the border between the lanes.
    assert plan.sends == ({}, {}, {1: Band(10, 12)}, {0: Band(12, 14)}, {})
    assert plan.borders == ((2,), (3,))
    together = BandPlan(plan.image, plan.bands, plan.lanes, plan.window, together=True)
    assert together.needs == plan.needs and together.sends == plan.sends
    assert together.awaits == ((0, 1, 2, 3, 4),) * 5
    assert together.borders == ((0, 1, 2), (3, 4))


def test_bands_are_of_nearly_equal_height() -> None:
    assert cut_rows(10, 3) == (Band(0, 3), Band(3, 6), Band(6, 10))
    assert cut_rows(10, 3, 4) == (Band(0, 4), Band(4, 8), Band(8, 10))
    assert cut_rows(9, 2, 4) == (Band(0, 4), Band(4, 9))
    assert cut_rows(5, 0) == cut_rows(5, 1) == (Band(0, 5),)


@pytest.mark.parametrize(
    ("bands", "shares", "owners"),
    [
        (6, [1, 1], (0, 0, 0, 1, 1, 1)),
        (6, [2, 1], (0, 0, 0, 0, 1, 1)),
        (4, [100, 1, 1], (0, 0, 1, 2)),
        (4, [1, 1, 100], (0, 1, 2, 2)),
        (2, [1, 1, 1], (0, 1)),
        (3, [5], (0, 0, 0)),
    ],
)
def test_lanes_by_hand(bands: int, shares: list[float], owners: tuple[int, ...]) -> None:
    assert deal(bands, shares) == owners


@pytest.mark.parametrize("bands", [(Band(0, 3), Band(4, 8)), (Band(1, 8),), (Band(0, 7),)])
def test_bands_that_do_not_cover_the_image_are_refused(bands: tuple[Band, ...]) -> None:
    with pytest.raises(ValueError, match="must follow each other and cover 8 rows"):
        BandPlan(Grid(8, 4), bands, (0,) * len(bands), Window(2))


@pytest.mark.parametrize("lanes", [(1, 0), (0,)])
def test_bands_without_a_lane_are_refused(lanes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="each band needs a lane, in order"):
        BandPlan(Grid(8, 4), (Band(0, 4), Band(4, 8)), lanes, Window(2))


def test_a_halo_is_a_sixth_of_sequence_parallelism() -> None:
    """8192 px on 4 devices, r = 16, bf16: an inner band has two borders."""
    image, window = Grid(512, 512), Window(16)
    plan = BandPlan(image, cut_rows(512, 4), (0, 1, 2, 3), window)
    rows = sum(len(needed[1]) for lane, needed in enumerate(plan.needs) if 1 in needed and lane != 1)
    halo = halo_bytes(image, window, 3072, 2, borders=2)
    # Of every row that another lane needs, a key and a value of 3072 channels for each token.
    assert halo == sum(2 * 512 * 3072 * 2 for _ in range(rows)) == 188_743_680
    # Of a quarter of all tokens q, k, v and the output, three quarters of each.
    assert all_to_all_bytes(8, 10, 2, 4) == 8 // 4 * 10 * 2 * 4 * 3 // 4
    assert 6 < all_to_all_bytes(image.tokens + 512, 3072, 2, 4) / halo < 7
