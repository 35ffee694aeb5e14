"""A forward in bands replayed with given compute and copy times: how much of the copies the order of work hides.

The replay executes the very steps of `schedule` and starts the very copies of `schedule.copies`; its trace equals that
of a real forward, event by event. Times are a model: `Costs` are given, one lane computes one step at a time, and one
copy at a time travels from a lane to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..flux import CHANNELS, HEAD_DIM
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
    share_of_rows,
)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of each kind of work in one layer.

    publish, attend: of one row of image tokens, up to its attention and from it on. replicated: of the text, in each
    of its two parts. merge: of a lane's share of the text. copy: of a copy.
    """

    publish: float
    attend: float
    replicated: float
    merge: float
    copy: Callable[[Copy], float]

    def of(self, plan: BandPlan, step: Step) -> float:
        if isinstance(step, Publish):
            return self.publish * len(plan.bands[step.band])
        if isinstance(step, Attend):
            return self.attend * len(plan.bands[step.band])
        if isinstance(step, (PublishReplicated, AttendReplicated)):
            return self.replicated
        return self.merge


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


def simulate(plan: BandPlan, costs: Costs, layers: int, *, pooled: bool = False) -> Timeline:
    """Replay `layers` layers on all lanes. pooled: whether bands have pooled keys and values."""
    replay = _Replay(plan, costs, pooled)
    for layer in range(layers):
        replay.layer(layer)
    replay.timeline.events.sort(key=lambda timed: timed.start)  # stable: a lane's events stay in its order
    return replay.timeline


class _Replay:
    def __init__(self, plan: BandPlan, costs: Costs, pooled: bool) -> None:
        self.timeline = Timeline(busy=dict.fromkeys(range(plan.lane_count), 0.0))
        self._plan, self._costs, self._pooled = plan, costs, pooled
        self._clock = dict.fromkeys(range(plan.lane_count), 0.0)
        self._links: dict[tuple[int, int], float] = {}
        self._halo_came: dict[tuple[int, int], float] = {}  # from lane to lane, in the layer that is replayed

    def layer(self, number: int) -> None:
        """All lanes through one layer, in any order in which each finds what it awaits."""
        left = {lane: list(schedule(self._plan, lane)) for lane in range(self._plan.lane_count)}
        arrived: dict[tuple[str, int, int], float] = {}  # what, whose, on which lane: when
        self._halo_came.clear()
        while any(left.values()):
            progress = False
            for lane, steps in left.items():
                while steps and (start := self._start(lane, steps[0], arrived)) is not None:
                    self._run(number, lane, steps.pop(0), start, arrived)
                    progress = True
            if not progress:
                raise ValueError(f"the schedule of {self._plan} waits for what never comes: {left}")

    def _start(self, lane: int, step: Step, arrived: Mapping[tuple[str, int, int], float]) -> float | None:
        """When a step can begin; None while something that it awaits has not been sent."""
        kinds: dict[type, str] = {Attend: "band", MergePartial: "partial", AttendReplicated: "merged"}
        start = self._clock[lane]
        for item in getattr(step, "awaits", ()):
            at = arrived.get((kinds[type(step)], item, lane))
            if at is None:
                return None
            start = max(start, at)
        return start

    def _run(
        self, number: int, lane: int, step: Step, start: float, arrived: dict[tuple[str, int, int], float]
    ) -> None:
        took = self._costs.of(self._plan, step)
        end = self._clock[lane] = start + took
        self.timeline.busy[lane] += took
        self.timeline.events.append(Timed(Event(lane, number, step), start, end))
        if isinstance(step, PublishPartial):
            arrived["partial", lane, lane] = end
        elif isinstance(step, MergePartial):
            arrived["merged", lane, lane] = end
        came = dict.fromkeys(range(self._plan.lane_count), end)
        for copy in copies(self._plan, lane, step, pooled=self._pooled):
            link = copy.source, copy.target
            began = max(end, self._links.get(link, 0.0))
            there = self._links[link] = began + self._costs.copy(copy)
            self.timeline.events.append(Timed(Event(lane, number, copy), end, there))
            if copy.kind in ("halo", "pooled"):
                came[copy.target] = max(there, came[copy.target])
            else:
                arrived[copy.kind, lane, copy.target] = there
        for band in published_by(self._plan, lane, step, pooled=self._pooled):
            for target, at in came.items():
                arrived["band", band, target] = max(at, self._halo_came.get((lane, target), 0.0))
        if isinstance(step, Publish):
            for target, at in came.items():
                self._halo_came[lane, target] = max(at, self._halo_came.get((lane, target), 0.0))


@dataclass(frozen=True, slots=True)
class Card:
    """flops: of matrix products, a second. attention: share of it that attention reaches. link: bytes a second."""

    flops: float
    attention: float
    link: float


def flux_costs(plan: BandPlan, card: Card, text: int = 512, *, channels: int = CHANNELS, size: int = 2) -> Costs:
    """What a single-stream block of FLUX costs on a card, by counting its products.

    size: bytes of an activation's element. The projections to q, k, v and the MLP's first half come before the
    attention: 3 + 4 times channels^2 products a token; 1 + 4 times channels^2 after it.
    """
    rate, width = card.flops, plan.image.width
    keys = plan.image.tokens if plan.window is None else plan.window.tokens
    before, after = (2 * part * channels**2 / rate for part in (7, 5))
    looks = 4 * channels / (rate * card.attention)

    def copy(sent: Copy) -> float:
        if sent.rows is not None:
            return 2 * len(sent.rows) * width * channels * size / card.link
        if sent.kind == "pooled":
            raise ValueError("pooled copies are not modelled")
        share = share_of_rows(text, plan.lane_count, sent.target if sent.kind == "partial" else sent.source)
        element = 4 * (1 + 1 / HEAD_DIM) if sent.kind == "partial" else size
        return (share.stop - share.start) * channels * element / card.link

    return Costs(
        publish=width * (before + looks * text),
        attend=width * (after + looks * (keys + text)),
        replicated=text * (before + after) / 2,
        merge=looks * text * text,
        copy=copy,
    )
