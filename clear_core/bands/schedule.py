"""The order of work of one lane in one attention layer, as data: `schedule(plan, lane)`.

A lane takes its bands from top to bottom, as a line buffer does. Before a band attends, the bands that its window
reaches must have published their keys and values; after it, the lane releases what it no longer needs. Bands that
another lane waits for publish first. Two lanes of two bands each, a window that reaches one band:

    lane 0   replicated | publish 1 | publish 0, attend 0 | attend 1 (awaits 2) | partial | attend replicated
    lane 1              | publish 2 | publish 3, attend 2 (awaits 1) | attend 3  | partial

`run` executes it; nothing else decides the order.
"""

from __future__ import annotations

from dataclasses import dataclass

from .plan import BandPlan


@dataclass(frozen=True, slots=True)
class PublishReplicated:
    """Compute the replicated tokens (text, references) up to their attention and publish query, key and value."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Compute a band up to its attention and publish its keys and values."""

    band: int


@dataclass(frozen=True, slots=True)
class Attend:
    """Let a band attend and finish its block.

    awaits: bands, of any lane, that must have published; so must the replicated tokens.
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
class AttendReplicated:
    """Merge the partial attention of the lanes it awaits, and finish the block of the replicated tokens."""

    awaits: tuple[int, ...]


Step = PublishReplicated | Publish | Attend | PublishPartial | AttendReplicated


def schedule(plan: BandPlan, lane: int) -> tuple[Step, ...]:
    """The steps of one lane in one layer, in order; the same in every layer."""
    steps: list[Step] = [PublishReplicated()] if lane == 0 else []
    mine, published = plan.bands_of(lane), set[int]()

    def publish(bands: tuple[int, ...]) -> None:
        for band in bands:
            if plan.lanes[band] == lane and band not in published:
                published.add(band)
                steps.append(Publish(band))

    last_user = {other: band for band in mine for other in plan.needs[band]}
    publish(plan.borders[lane])
    for band in mine:
        publish(plan.awaits[band])
        releases = tuple(other for other in plan.needs[band] if last_user[other] == band)
        steps.append(Attend(band, plan.awaits[band], releases))
    steps.append(PublishPartial(lane))
    if lane == 0:
        steps.append(AttendReplicated(tuple(range(plan.lane_count))))
    return tuple(steps)


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
