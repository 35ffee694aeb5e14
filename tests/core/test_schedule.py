"""The order of work of the lanes, as data: replayed without threads, models or tensors."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from clear_core.bands.plan import BandPlan
from clear_core.bands.schedule import (
    Attend,
    AttendReplicated,
    Publish,
    PublishPartial,
    PublishReplicated,
    Step,
    rows_waiting,
    schedule,
)
from clear_core.layout import Grid
from clear_core.window import Window


@st.composite
def plans(draw: st.DrawFn) -> BandPlan:
    window = draw(st.one_of(st.none(), st.integers(1, 40).map(Window)))
    return BandPlan.cut(
        Grid(draw(st.integers(1, 60)), 5),
        draw(st.integers(1, 20)),
        window,
        down_factor=draw(st.sampled_from([1, 2, 4])),
        shares=draw(st.lists(st.floats(0.2, 5), min_size=1, max_size=5)),
    )


class Replay:
    """One layer on all lanes. `step(lane)` runs a lane's next step; what it awaits must have happened."""

    def __init__(self, plan: BandPlan) -> None:
        self.plan = plan
        self.left = [list(schedule(plan, lane)) for lane in range(plan.lane_count)]
        self.replicated = self.finished = False
        self.published: set[int] = set()
        self.attended: list[int] = []
        self.kept: dict[int, set[int]] = {}  # by band, the lanes that have not released its keys
        self.partial: set[int] = set()

    def ready(self, lane: int) -> bool:
        if not self.left[lane]:
            return False
        step = self.left[lane][0]
        if isinstance(step, Attend):
            return self.replicated and self.published >= set(step.awaits)
        return not isinstance(step, AttendReplicated) or self.partial >= set(step.awaits)

    def step(self, lane: int) -> Step:
        step = self.left[lane].pop(0)
        if isinstance(step, PublishReplicated):
            assert lane == 0
            self.replicated = True
        elif isinstance(step, Publish):
            assert self.plan.lanes[step.band] == lane
            assert step.band not in self.published
            self.published.add(step.band)
            self.kept[step.band] = set(self.plan.users[step.band])
        elif isinstance(step, Attend):
            self._attend(step, lane)
        elif isinstance(step, PublishPartial):
            assert step.lane == lane
            assert set(self.plan.bands_of(lane)) <= set(self.attended)
            self.partial.add(lane)
        else:
            assert sorted(self.attended) == list(range(len(self.plan.bands)))
            self.finished = True
        return step

    def _attend(self, step: Attend, lane: int) -> None:
        assert step.band in self.published
        assert self.plan.lanes[step.band] == lane
        for needed in self.plan.needs[step.band]:
            assert lane in self.kept[needed], "its keys were released too early"
        for band in step.releases:
            self.kept[band].remove(lane)
        self.attended.append(step.band)


@given(plan=plans(), order=st.randoms(use_true_random=False))
def test_any_interleaving_of_the_lanes_comes_to_an_end(plan: BandPlan, order: random.Random) -> None:
    replay = Replay(plan)
    while any(replay.left):
        ready = [lane for lane in range(plan.lane_count) if replay.ready(lane)]
        assert ready, f"deadlock before {[left[:1] for left in replay.left]}"
        replay.step(order.choice(ready))
    assert replay.finished
    assert len(replay.attended) == len(plan.bands)
    assert not any(replay.kept.values()), "keys that nobody released"


@given(plan=plans())
def test_keys_are_released_with_the_last_band_of_the_lane_that_needs_them(plan: BandPlan) -> None:
    for lane in range(plan.lane_count):
        attends = [step for step in schedule(plan, lane) if isinstance(step, Attend)]
        for index, step in enumerate(attends):
            later = {band for other in attends[index + 1 :] for band in plan.needs[other.band]}
            assert set(step.releases) == set(plan.needs[step.band]) - later


@given(plan=plans())
def test_bands_that_other_lanes_await_publish_first(plan: BandPlan) -> None:
    for lane in range(plan.lane_count):
        steps = schedule(plan, lane)
        first = [step.band for step in steps if isinstance(step, Publish)][: len(plan.borders[lane])]
        assert tuple(first) == plan.borders[lane]
        before = steps[: next(i for i, step in enumerate(steps) if isinstance(step, Attend))]
        assert set(plan.borders[lane]) <= {step.band for step in before if isinstance(step, Publish)}


@given(plan=plans())
def test_a_lane_holds_no_more_bands_than_the_window_reaches(plan: BandPlan) -> None:
    """Besides the borders for other lanes: a band publishes only when the next one to attend awaits it."""
    for lane in range(plan.lane_count):
        waiting: set[int] = set()
        most = 0
        steps = schedule(plan, lane)
        for index, step in enumerate(steps):
            if isinstance(step, Publish):
                waiting.add(step.band)
                following = next(later for later in steps[index:] if isinstance(later, Attend))
                assert step.band in {*following.awaits, *plan.borders[lane]}
                most = max(most, sum(len(plan.bands[band]) for band in waiting))
            elif isinstance(step, Attend):
                waiting.remove(step.band)
        assert not waiting
        assert rows_waiting(plan, lane) == most


def test_the_example_in_the_documentation() -> None:
    plan = BandPlan.cut(Grid(16, 4), 4, Window(5), shares=(1.0, 1.0))
    assert schedule(plan, 0) == (
        PublishReplicated(),
        Publish(1),
        Publish(0),
        Attend(0, (0, 1), ()),
        Attend(1, (0, 1, 2), (0, 1, 2)),
        PublishPartial(0),
        AttendReplicated((0, 1)),
    )
    assert schedule(plan, 1) == (
        Publish(2),
        Publish(3),
        Attend(2, (1, 2, 3), (1,)),
        Attend(3, (2, 3), (2, 3)),
        PublishPartial(1),
    )
    assert (rows_waiting(plan, 0), rows_waiting(plan, 1)) == (8, 8)


def test_one_lane_of_thin_bands_streams_through_the_image() -> None:
    """512 rows in bands of 8 with r = 16: at most 24 rows wait, however tall the image is."""
    plan = BandPlan.cut(Grid(512, 512), 64, Window(16))
    assert rows_waiting(plan, 0) == 24
