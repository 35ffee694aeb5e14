"""The order of work replayed with given times: how much of the copies it hides, and that a real forward does the same.

The model here is nothing but attention; tests/host/test_bands.py compares the host's own forward.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_core.bands.plan import BandPlan
from clear_core.bands.schedule import Copy
from clear_core.bands.simulate import Card, Costs, flux_costs, simulate
from clear_core.layout import Grid
from clear_core.window import Window

from core.attention_only import traced

RTX_4090, H200 = Card(165e12, 0.5, 25e9), Card(800e12, 0.5, 25e9)


def speed_up(lanes: int, card: Card) -> float:
    """Of a forward at 8192 x 8192 px, r = 16, in four bands a lane."""
    image, window, count = Grid(512, 512), Window(16), 4 * lanes
    one, several = (BandPlan.cut(image, count, window, shares=(1.0,) * number) for number in (1, lanes))
    single, shared = (simulate(plan, flux_costs(plan, card), layers=4).seconds for plan in (one, several))
    return single / shared


@pytest.mark.parametrize("card", [RTX_4090, H200], ids=["4090", "H200"])
def test_two_and_four_cards_at_8192_pixels(card: Card) -> None:
    assert 1.9 <= speed_up(2, card) <= 2
    assert 3.7 <= speed_up(4, card) <= 4


def test_interior_bands_attend_while_a_slow_link_carries_the_halo() -> None:
    plan = BandPlan.cut(Grid(64, 4), 16, Window(5), shares=(1.0, 1.0))
    costs = Costs(publish=1.0, attend=1.0, replicated=0.0, merge=0.0, copy=lambda copy: 20.0 if copy.rows else 0.0)
    timeline = simulate(plan, costs, layers=1)
    # 32 rows a lane, published and attended: the halo's 20 seconds pass behind the interior's work.
    assert timeline.seconds == 64
    costs = Costs(publish=1.0, attend=1.0, replicated=0.0, merge=0.0, copy=lambda copy: 80.0 if copy.rows else 0.0)
    assert simulate(plan, costs, layers=1).seconds > 80


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 30),
    count=st.integers(1, 12),
    radius=st.one_of(st.none(), st.integers(1, 12)),
    shares=st.lists(st.floats(0.3, 3), min_size=1, max_size=4),
    times=st.lists(st.floats(0.01, 5), min_size=5, max_size=5),
)
def test_a_real_forward_does_what_the_replay_does_event_by_event(
    rows: int, count: int, radius: int | None, shares: list[float], times: list[float]
) -> None:
    plan = BandPlan.cut(Grid(rows, 3), count, None if radius is None else Window(radius), shares=shares)
    trace, _ = traced(plan, layers=2, text=5)
    publish, attend, replicated, merge, copy = times
    simulated = simulate(plan, Costs(publish, attend, replicated, merge, lambda _: copy), layers=2)
    for lane in range(plan.lane_count):
        assert [event for event in trace if event.lane == lane] == simulated.of(lane)
    assert len(trace) == len(simulated.events)


def test_pooled_keys_travel_to_every_lane() -> None:
    plan = BandPlan.cut(Grid(16, 4), 4, Window(3), down_factor=2, shares=(1.0, 1.0, 1.0))
    timeline = simulate(plan, Costs(1, 1, 1, 1, lambda _: 1), layers=1, pooled=True)
    copied = [timed.event.what for timed in timeline.events if isinstance(timed.event.what, Copy)]
    pooled = {(copy.source, copy.target) for copy in copied if copy.kind == "pooled"}
    assert pooled == {(lane, other) for lane in range(3) for other in range(3) if lane != other}
