"""Layers of a forward in bands replayed in order of time: what `simulate` and predictions for several machines run.

A lane computes one step at a time. A copy passes what its `Route` names, a link or a network card, each of which
serves one copy at a time, in the order in which they were started.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from math import isclose

from .exchange import Event
from .plan import BandPlan
from .schedule import (
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
    schedule,
)


@dataclass(frozen=True, slots=True)
class Route:
    """How a copy travels: it is there once all that it passes has served it, and the latency is over.

    passes: each with the seconds that it needs for the copy. latency: seconds; it holds up no other copy.
    """

    passes: tuple[tuple[Hashable, float], ...]
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of each kind of work in one layer.

    publish, attend: of one row of image tokens, up to its attention and from it on. replicated: of the text, in each
    of its two parts. merge: of a lane's share of the text. copy: of a copy, on a link that this lane and the target
    alone use; or its route.
    """

    publish: float
    attend: float
    replicated: float
    merge: float
    copy: Callable[[Copy], float | Route]

    def of(self, plan: BandPlan, step: Step) -> float:
        if isinstance(step, Publish):
            return self.publish * len(plan.bands[step.band])
        if isinstance(step, Attend):
            return self.attend * len(plan.bands[step.band])
        if isinstance(step, (PublishReplicated, AttendReplicated)):
            return self.replicated
        return self.merge

    def route(self, copy: Copy) -> Route:
        found = self.copy(copy)
        return found if isinstance(found, Route) else Route((((copy.source, copy.target), found),))


@dataclass(frozen=True, slots=True)
class Timed:
    """An event and when it began and ended, in seconds."""

    event: Event
    start: float
    end: float


@dataclass(slots=True)
class Timeline:
    """events: in the order in which they began. busy: seconds that each lane computed."""

    events: list[Timed] = field(default_factory=list)
    busy: dict[int, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return max(timed.end for timed in self.events)

    def of(self, lane: int) -> list[Event]:
        """A lane's steps and copies in its order: what a real forward's trace has of it."""
        return [timed.event for timed in self.events if timed.event.lane == lane]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step, what it sends, and the bands that others may attend to after it."""

    step: Step
    copies: tuple[Copy, ...]
    published: tuple[int, ...]


_AWAITED = {Attend: "band", MergePartial: "partial", AttendReplicated: "merged"}
_Arrived = dict[tuple[str, int, int], float]
"""What, whose, on which lane: when."""


class Replay:
    """All lanes, layer by layer. Layers may differ in their costs."""

    def __init__(self, plan: BandPlan, *, pooled: bool = False) -> None:
        """pooled: whether bands have pooled keys and values."""
        lanes = range(plan.lane_count)
        self.timeline = Timeline(busy=dict.fromkeys(lanes, 0.0))
        self._plan = plan
        self._order = [
            [
                _Planned(step, copies(plan, lane, step, pooled=pooled), published_by(plan, lane, step, pooled=pooled))
                for step in schedule(plan, lane)
            ]
            for lane in lanes
        ]
        self._clock = [0.0 for _ in lanes]
        self._free: dict[Hashable, float] = {}  # when a link or a network card has served all that was started
        self._halo_came: dict[tuple[int, int], float] = {}  # from lane to lane, in the layer that is replayed
        self._layers = 0

    @property
    def seconds(self) -> float:
        """Until the last lane is done."""
        return max(self._clock)

    def layer(self, costs: Sequence[Costs]) -> None:
        """All lanes through one layer. costs: of each lane."""
        left = [iter(order) for order in self._order]
        ahead = [next(steps, None) for steps in left]
        arrived: _Arrived = {}
        self._halo_came.clear()
        ready: dict[int, tuple[float, float]] = {}  # of each lane that can begin its next step: end and start
        while any(ahead):
            for lane, planned in enumerate(ahead):
                if planned and lane not in ready:
                    start = self._start(lane, planned.step, arrived)
                    if start is not None:
                        ready[lane] = start + costs[lane].of(self._plan, planned.step), start
            if not ready:
                raise ValueError(f"the schedule of {self._plan} waits for what never comes: {ahead}")
            # The step that ends first, of all lanes: so copies are started in order of time, also where lanes share
            # a network card. Whatever it enables ends later.
            lane = min(ready, key=lambda each: (ready[each], each))
            (end, start), planned = ready.pop(lane), ahead[lane]
            assert planned is not None
            self._run(lane, planned, start, end, costs[lane], arrived)
            ahead[lane] = next(left[lane], None)
        self._layers += 1

    def repeat(self, costs: Sequence[Costs], count: int) -> None:
        """`count` equal layers, added up without replaying them once each does what the one before it did.

        What a layer does depends on nothing but when each lane begins it and when each link and network card is free.
        If all of these are as at the layer's begin, shifted by one time, every further layer shifts them again by that
        time. Skipped layers are not among the timeline's events.
        """
        for done in range(1, count + 1):
            before, busy = self._state(), dict(self.timeline.busy)
            self.layer(costs)
            after = self._state()
            period, left = after[0] - before[0], count - done
            if _alike(before, after, period):
                self._clock = [at + period * left for at in self._clock]
                self._free = {held: at + period * left for held, at in self._free.items()}
                for lane, was in busy.items():
                    self.timeline.busy[lane] += (self.timeline.busy[lane] - was) * left
                self._layers += left
                return

    def _state(self) -> tuple[float, list[float], dict[Hashable, float]]:
        """The earliest lane's time; how much later the others are, and when what is not free by then is."""
        now = min(self._clock)
        busy = {held: at - now for held, at in self._free.items() if at > now}
        return now, [at - now for at in self._clock], busy

    def _start(self, lane: int, step: Step, arrived: _Arrived) -> float | None:
        """When a step can begin; None while something that it awaits has not been sent."""
        start = self._clock[lane]
        if isinstance(step, (Attend, MergePartial, AttendReplicated)):
            kind = _AWAITED[type(step)]
            for item in step.awaits:
                at = arrived.get((kind, item, lane))
                if at is None:
                    return None
                start = max(start, at)
        return start

    def _run(self, lane: int, planned: _Planned, start: float, end: float, costs: Costs, arrived: _Arrived) -> None:
        step, came = planned.step, dict[int, float]()  # halos and pooled keys: when on which lane
        self._clock[lane] = end
        self.timeline.busy[lane] += end - start
        self.timeline.events.append(Timed(Event(lane, self._layers, step), start, end))
        if isinstance(step, PublishPartial):
            arrived["partial", lane, lane] = end
        elif isinstance(step, MergePartial):
            arrived["merged", lane, lane] = end
        for copy in planned.copies:
            there = self._send(costs.route(copy), end)
            self.timeline.events.append(Timed(Event(lane, self._layers, copy), end, there))
            if copy.kind in ("halo", "pooled"):
                came[copy.target] = max(there, came.get(copy.target, 0.0))
            else:
                arrived[copy.kind, lane, copy.target] = there
        if isinstance(step, Publish):
            for target, at in came.items():
                self._halo_came[lane, target] = at
        for target in range(self._plan.lane_count) if planned.published else ():
            at = max(end, came.get(target, 0.0), self._halo_came.get((lane, target), 0.0))
            for band in planned.published:
                arrived["band", band, target] = at

    def _send(self, route: Route, now: float) -> float:
        """Start a copy; when it is there."""
        there = now
        for held, seconds in route.passes:
            served = self._free[held] = max(now, self._free.get(held, 0.0)) + seconds
            there = max(there, served)
        return there + route.latency


def _alike(
    one: tuple[float, list[float], dict[Hashable, float]],
    other: tuple[float, list[float], dict[Hashable, float]],
    period: float,
) -> bool:
    """Whether two states are equal but for rounding."""

    def near(a: float, b: float) -> bool:
        return isclose(a, b, rel_tol=1e-9, abs_tol=1e-9 * period)

    held = one[2].keys() | other[2].keys()
    return all(map(near, one[1], other[1])) and all(near(one[2].get(k, 0.0), other[2].get(k, 0.0)) for k in held)
