"""The order of work of one lane in one attention layer, as data: `schedule(plan, lane)`.

A lane publishes first what other lanes wait for, attends its interior while those halos travel, and attends last
the bands that need rows of other lanes. Its interior goes from top to bottom, as through a line buffer: a band
publishes when the next one to attend needs it. Every lane has a copy of the replicated tokens (text, references);
their partial attention over the rows of each lane is summed up by an all-reduce of (out, log-sum-exp), which starts
when the lane's last band has published. Two lanes of three bands each, a window that reaches one band:

    lane 0   replicated, publish 2, 0, 1, partial | attend 0, 1 | attend 2 (awaits 3) | merge | attend replicated
    lane 1   replicated, publish 3, 4, 5, partial | attend 4, 5 | attend 3 (awaits 2) | merge | attend replicated

`run` executes it, and `simulate` replays it with given times; nothing else decides the order. `copies` is what leaves
a lane after a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..layout import Band
from .plan import BandPlan


@dataclass(frozen=True, slots=True)
class PublishReplicated:
    """Compute the replicated tokens (text, references) up to their attention; every lane does, for itself."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Compute a band up to its attention, publish its keys and values, and let the replicated tokens attend to them."""

    band: int


@dataclass(frozen=True, slots=True)
class Attend:
    """Let a band attend and finish its block.

    awaits: bands, of any lane, that must have published.
    releases: bands whose keys and values this lane does not need any more once this band has gathered its own.
    """

    band: int
    awaits: tuple[int, ...]
    releases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublishPartial:
    """The replicated tokens' partial attention over this lane's rows is complete: publish it."""

    lane: int


@dataclass(frozen=True, slots=True)
class MergePartial:
    """Merge what all lanes have published of this lane's share of the replicated tokens, and publish the result."""

    lane: int
    awaits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttendReplicated:
    """Join the shares that all lanes have merged, and finish the block of the replicated tokens."""

    awaits: tuple[int, ...]


Step = PublishReplicated | Publish | Attend | PublishPartial | MergePartial | AttendReplicated

CopyKind = Literal["halo", "pooled", "partial", "merged"]


@dataclass(frozen=True, slots=True)
class Copy:
    """What one lane sends to another, once a layer: rows that its window reaches, pooled keys, shares of the text.

    rows: of a halo.
    """

    kind: CopyKind
    source: int
    target: int
    rows: Band | None = None


def schedule(plan: BandPlan, lane: int) -> tuple[Step, ...]:
    """The steps of one lane in one layer, in order; the same in every layer."""
    steps: list[Step] = [PublishReplicated()]
    mine, published = plan.bands_of(lane), set[int]()

    def publish(bands: tuple[int, ...]) -> None:
        for band in bands:
            if plan.lanes[band] == lane and band not in published:
                published.add(band)
                steps.append(Publish(band))
                if len(published) == len(mine):
                    steps.append(PublishPartial(lane))

    border = {band for band in mine if any(plan.lanes[other] != lane for other in plan.awaits[band])}
    order = [*(band for band in mine if band not in border), *(band for band in mine if band in border)]
    last_user = {other: band for band in order for other in plan.needs[band]}
    publish(plan.borders[lane])
    for band in order:
        publish(plan.awaits[band])
        releases = tuple(other for other in plan.needs[band] if last_user[other] == band)
        steps.append(Attend(band, plan.awaits[band], releases))
    everyone = tuple(range(plan.lane_count))
    return (*steps, MergePartial(lane, everyone), AttendReplicated(everyone))


def copies(plan: BandPlan, lane: int, step: Step, *, pooled: bool) -> tuple[Copy, ...]:
    """What a lane sends after a step, in order. pooled: whether the layer's bands have pooled keys and values."""
    others = [other for other in range(plan.lane_count) if other != lane]
    if isinstance(step, Publish):
        return tuple(
            Copy("halo", lane, target, rows)
            for target, rows in plan.halos[lane].items()
            # Bands at the borders publish in order: with the last of those that the target needs, all rows are there.
            if step.band == max(band for band in plan.bands_of(lane) if target in plan.sends[band])
        )
    if isinstance(step, PublishPartial):
        pooled_too = [Copy("pooled", lane, target) for target in others if pooled]
        return (*pooled_too, *(Copy("partial", lane, target) for target in others))
    if isinstance(step, MergePartial):
        return tuple(Copy("merged", lane, target) for target in others)
    return ()


def published_by(plan: BandPlan, lane: int, step: Step, *, pooled: bool) -> tuple[int, ...]:
    """The bands of a lane that any lane may attend to once a step and its copies have been done."""
    if pooled:
        return plan.bands_of(lane) if isinstance(step, PublishPartial) else ()
    if not isinstance(step, Publish):
        return ()
    border = plan.borders[lane]
    if step.band not in border:
        return (step.band,)
    return border if step.band == border[-1] else ()


def share_of_rows(rows: int, lanes: int, lane: int) -> slice:
    """The rows of the replicated tokens whose partial attention a lane merges; the shares of all lanes are all rows."""
    return slice(rows * lane // lanes, rows * (lane + 1) // lanes)


def rows_waiting(plan: BandPlan, lane: int) -> int:
    """The most rows at a time that have published and not yet attended: what a lane holds besides its tokens."""
    now = most = 0
    for step in schedule(plan, lane):
        if isinstance(step, Publish):
            now += len(plan.bands[step.band])
            most = max(most, now)
        elif isinstance(step, Attend):
            now -= len(plan.bands[step.band])
    return most
