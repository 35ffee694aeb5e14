"""The order of work of the lanes, as data: replayed without threads, models or tensors."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from clear_core.bands.plan import BandPlan
from clear_core.bands.schedule import (
    Attend,
    AttendReplicated,
    Copy,
    MergePartial,
    Publish,
    PublishPartial,
    PublishReplicated,
    Step,
    copies,
    published_by,
    rows_waiting,
    schedule,
    share_of_rows,
)
from clear_core.layout import Band, Grid
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
        self.replicated: set[int] = set()  # lanes
        self.finished: set[int] = set()
        self.published: set[int] = set()
        self.attended: list[int] = []
        self.kept: dict[int, dict[int, Band]] = {lane: {} for lane in range(plan.lane_count)}  # rows, by band
        self.shares: dict[str, set[tuple[int, int]]] = {"partial": set(), "merged": set()}  # source and target

    def ready(self, lane: int) -> bool:
        if not self.left[lane]:
            return False
        step = self.left[lane][0]
        if isinstance(step, Attend):
            return self.published >= set(step.awaits)
        kind = {MergePartial: "partial", AttendReplicated: "merged"}.get(type(step))
        return kind is None or all((other, lane) in self.shares[kind] for other in step.awaits)

    def step(self, lane: int) -> Step:
        step = self.left[lane].pop(0)
        if isinstance(step, PublishReplicated):
            self.replicated.add(lane)
        elif isinstance(step, Publish):
            assert self.plan.lanes[step.band] == lane
            assert step.band not in self.kept[lane]
            assert lane in self.replicated, "the text attends to the band"
            self.kept[lane][step.band] = self.plan.bands[step.band]
        elif isinstance(step, Attend):
            self._attend(step, lane)
        elif isinstance(step, PublishPartial):
            assert step.lane == lane
            assert set(self.plan.bands_of(lane)) <= set(self.kept[lane])
            self.shares["partial"].add((lane, lane))
        elif isinstance(step, MergePartial):
            self.shares["merged"].add((lane, lane))
        else:
            self.finished.add(lane)
        for copy in copies(self.plan, lane, step, pooled=False):
            assert copy.source == lane != copy.target
            if copy.rows is not None:
                for band in self.plan.bands_of(lane):
                    if copy.target in self.plan.sends[band]:
                        assert band in self.kept[lane], "not all rows of the halo are there"
                        self.kept[copy.target][band] = self.plan.sends[band][copy.target]
            else:
                self.shares[copy.kind].add((lane, copy.target))
        self.published.update(published_by(self.plan, lane, step, pooled=False))
        return step

    def _attend(self, step: Attend, lane: int) -> None:
        assert step.band in self.published, "its own keys"
        assert self.plan.lanes[step.band] == lane
        for needed, rows in self.plan.needs[step.band].items():
            have = self.kept[lane][needed]
            assert have.start <= rows.start
            assert rows.stop <= have.stop
        for band in step.releases:
            del self.kept[lane][band]
        self.attended.append(step.band)


@given(plan=plans(), order=st.randoms(use_true_random=False))
def test_any_interleaving_of_the_lanes_comes_to_an_end(plan: BandPlan, order: random.Random) -> None:
    replay = Replay(plan)
    while any(replay.left):
        ready = [lane for lane in range(plan.lane_count) if replay.ready(lane)]
        assert ready, f"deadlock before {[left[:1] for left in replay.left]}"
        replay.step(order.choice(ready))
    assert replay.finished == set(range(plan.lane_count))
    assert sorted(replay.attended) == list(range(len(plan.bands)))
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
def test_what_needs_no_other_lane_attends_before_what_does(plan: BandPlan) -> None:
    for lane in range(plan.lane_count):
        foreign = [
            any(plan.lanes[other] != lane for other in step.awaits)
            for step in schedule(plan, lane)
            if isinstance(step, Attend)
        ]
        assert foreign == sorted(foreign)


@given(plan=plans())
def test_the_texts_shares_leave_as_soon_as_the_last_band_has_published(plan: BandPlan) -> None:
    for lane in range(plan.lane_count):
        steps = schedule(plan, lane)
        last = max(index for index, step in enumerate(steps) if isinstance(step, Publish))
        assert steps[last + 1] == PublishPartial(lane)


@given(plan=plans())
def test_sends_are_the_inverse_of_needs(plan: BandPlan) -> None:
    sent = {
        (band, lane): set(range(rows.start, rows.stop))
        for band, sends in enumerate(plan.sends)
        for lane, rows in sends.items()
    }
    needed: dict[tuple[int, int], set[int]] = {}
    for band, lane in enumerate(plan.lanes):
        for other, rows in plan.needs[band].items():
            if plan.lanes[other] != lane:
                needed.setdefault((other, lane), set()).update(range(rows.start, rows.stop))
    assert sent == needed


@given(plan=plans())
def test_a_lane_sends_each_neighbour_one_halo_however_thin_its_bands_are(plan: BandPlan) -> None:
    for lane in range(plan.lane_count):
        sent = [copy for step in schedule(plan, lane) for copy in copies(plan, lane, step, pooled=plan.together)]
        assert len({(copy.kind, copy.target) for copy in sent}) == len(sent)
        halos = {copy.target: copy.rows for copy in sent if copy.kind == "halo"}
        assert halos == plan.halos[lane]
        for target, rows in halos.items():
            parts = [plan.sends[band][target] for band in plan.bands_of(lane) if target in plan.sends[band]]
            assert sum(map(len, parts)) == len(rows), "the parts are next to each other"


@given(rows=st.integers(0, 50), lanes=st.integers(1, 9))
def test_the_shares_of_all_lanes_are_all_rows(rows: int, lanes: int) -> None:
    shares = [share_of_rows(rows, lanes, lane) for lane in range(lanes)]
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))


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
    plan = BandPlan.cut(Grid(24, 4), 6, Window(5), shares=(1.0, 1.0))
    assert schedule(plan, 0) == (
        PublishReplicated(),
        Publish(2),
        Publish(0),
        Publish(1),
        PublishPartial(0),
        Attend(0, (0, 1), ()),
        Attend(1, (0, 1, 2), (0,)),
        Attend(2, (1, 2, 3), (1, 2, 3)),
        MergePartial(0, (0, 1)),
        AttendReplicated((0, 1)),
    )
    assert schedule(plan, 1) == (
        PublishReplicated(),
        Publish(3),
        Publish(4),
        Publish(5),
        PublishPartial(1),
        Attend(4, (3, 4, 5), ()),
        Attend(5, (4, 5), (5,)),
        Attend(3, (2, 3, 4), (2, 3, 4)),
        MergePartial(1, (0, 1)),
        AttendReplicated((0, 1)),
    )
    assert copies(plan, 0, Publish(2), pooled=False) == (Copy("halo", 0, 1, Band(8, 12)),)
    assert (rows_waiting(plan, 0), rows_waiting(plan, 1)) == (12, 12)


def test_one_lane_of_thin_bands_streams_through_the_image() -> None:
    """512 rows in bands of 8 with r = 16: at most 24 rows wait, however tall the image is."""
    plan = BandPlan.cut(Grid(512, 512), 64, Window(16))
    assert rows_waiting(plan, 0) == 24
