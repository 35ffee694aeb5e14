"""What the lanes of one forward exchange, layer by layer: halos of keys and values, pooled tokens, shares of the text.

This is context parallelism by halo exchange: a lane needs from its neighbours only the rows within the window's
reach. What a lane publishes is copied to the lanes that need it at once (`schedule.copies`), so that it travels while
they attend their interior. On one device nothing is copied; to a lane of another process it goes through `Links`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import Band
from ..pooling import Pooled
from .plan import BandPlan
from .remote import Links
from .schedule import (
    Copy,
    MergePartial,
    Publish,
    PublishPartial,
    Step,
    copies,
    published_by,
    share_of_rows,
)
from .state import LaneLayer, LayerState, Rows
from .transfer import Arriving, Transfers

OUT_OF_STEP = (
    "The bands of the image did not do the same layers ({}). Another node skips or replaces FLUX's blocks or takes "
    "over their attention: remove it, put it before Apply CLEAR Attention, or use one band."
)


_TICK = 0.2  # seconds between two checks


class OutOfStep(RuntimeError):
    """The workers of one forward did not do the same layers."""


class Stopped(BaseException):
    """Raised in a lane when another one failed. Not an Exception: only the first failure is of interest."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that crossed from one lane to another in one forward.

    halo: keys and values of image rows. text: partial and merged attention of the replicated tokens.
    pooled: down-sampled keys and values.
    """

    halo: int = 0
    text: int = 0
    pooled: int = 0

    @property
    def total(self) -> int:
        return self.halo + self.text + self.pooled


@dataclass(frozen=True, slots=True)
class Event:
    """A step that a lane begins in a layer, or a copy that it starts: the trace of a forward."""

    lane: int
    layer: int
    what: Step | Copy


class Exchange:
    """The layers that are under way, and the bytes that crossed from lane to lane."""

    def __init__(
        self,
        plan: BandPlan,
        devices: Sequence[torch.device],
        transfers: Transfers | None = None,
        trace: list[Event] | None = None,
        links: Links | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """devices: one for each lane. trace: a list that is given every step and every copy, in order of each lane.

        links: to the lanes of other processes; None where this one has all. check: called while a lane waits for
        those; may raise to end the forward.
        """
        self.plan = plan
        self.devices = tuple(devices)
        self.failure: BaseException | None = None
        self.lanes = range(plan.lane_count) if links is None else links.lanes
        self._links, self._check = links, check
        self._transfers = transfers or Transfers()
        self._trace = trace
        self._changed = threading.Condition()
        self._layers: dict[int, LayerState] = {}
        self._layers_done: int | None = None  # of a lane that has finished
        self._sent = {"halo": 0, "text": 0, "pooled": 0}

    @property
    def traffic(self) -> Traffic:
        return Traffic(**self._sent)

    def lane(self, number: int, lane: int) -> LaneLayer:
        """A lane's part of a layer."""
        with self._changed:
            return self._layer(number).lanes[lane]

    def wait(self, number: int, lane: int, step: Step) -> None:
        """Until other lanes have published all that a step of a lane awaits. Raises Stopped when one of them failed."""
        with self._changed:
            layer = self._layer(number)
            while True:
                if self.failure is not None:
                    raise Stopped  # at once, also where there is nothing to wait for
                if layer.lanes[lane].ready(step):
                    return
                if self._layers_done is not None and number >= self._layers_done:
                    raise OutOfStep(OUT_OF_STEP.format("one device has finished, another has not"))
                if self._links is None:
                    self._changed.wait()
                elif not self._changed.wait(_TICK):
                    self._check()

    def publish_band(
        self, number: int, lane: int, band: int, keys: tuple[Tensor, Tensor], pooled: Pooled | None
    ) -> None:
        """Keys and values of a band's rows: kept for this lane, and copied to those that need some of them."""
        mine, step = self.lane(number, lane), Publish(band)
        mine.own[band] = Rows(self.plan.bands[band], keys, {band})
        if pooled is not None:
            mine.band_pooled[band] = pooled
        with self._publishing(number, lane, step, pooled=pooled is not None) as sends:
            for copy in sends:
                assert copy.rows is not None
                self._send(number, copy, self._own_rows(mine, lane, copy.target))

    def publish_partial(self, number: int, lane: int) -> None:
        """The replicated tokens' attention over this lane's rows: to each lane the share that it merges.

        With it go the lane's pooled keys and values, where the layer has any: all bands have published.
        """
        mine = self.lane(number, lane)
        result = mine.partial.merged.result(torch.float32)
        assert result.lse is not None
        parts = (result.out, result.lse), mine.partial.total
        pooled = mine.lane_pooled = _joined([mine.band_pooled[band] for band in sorted(mine.band_pooled)])
        mine.band_pooled.clear()
        with self._publishing(number, lane, PublishPartial(lane), pooled=pooled is not None) as sends:
            mine.shares[lane] = self._share(*parts, lane)
            for copy in sends:
                if copy.kind == "pooled":
                    assert pooled is not None
                    self._send(number, copy, (pooled.key, pooled.value))
                else:
                    self._send(number, copy, self._share(*parts, copy.target))
            for other in self._here(number):
                other.partials.add(lane)

    def _own_rows(self, mine: LaneLayer, lane: int, target: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows that another lane needs, joined where they are of several bands."""
        plan = self.plan
        bands = [band for band in plan.bands_of(lane) if target in plan.sends[band]]
        parts = [mine.own[band].cut(plan.sends[band][target], plan.image.width) for band in bands]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([key for key, _ in parts], 2), torch.cat([value for _, value in parts], 2)

    def _share(self, attention: tuple[Tensor, Tensor], total: Tensor | None, lane: int) -> tuple[Tensor, ...]:
        """A lane's share of out [batch, rows, channels], lse [batch, heads, rows] and total [batch, text, channels]."""
        out, lse = attention
        rows = share_of_rows(out.shape[1], self.plan.lane_count, lane)
        share = out[:, rows], lse[:, :, rows]
        return share if total is None else (*share, total[:, rows])

    def shares(self, number: int, lane: int) -> list[tuple[Tensor, ...]]:
        """What every lane has published of a lane's share, by lane: out, lse and, for averages, the text's total."""
        found = self._arrived(number, lane, "partial")
        mine = self.lane(number, lane).shares.pop(lane)
        return [mine if other == lane else found[other] for other in range(self.plan.lane_count)]

    def publish_merged(self, number: int, lane: int, merged: Tensor) -> None:
        """A lane's share of the replicated tokens' attention, [batch, rows, channels], over everything."""
        self.lane(number, lane).merged = merged
        with self._publishing(number, lane, MergePartial(lane, ())) as sends:
            for copy in sends:
                self._send(number, copy, (merged,))
            for other in self._here(number):
                other.merges.add(lane)

    def merged(self, number: int, lane: int) -> Tensor:
        """The replicated tokens' attention over everything, [batch, rows, channels]; the lane leaves the layer."""
        found, mine = self._arrived(number, lane, "merged"), self.lane(number, lane).merged
        assert mine is not None
        parts = [mine if other == lane else found[other][0] for other in range(self.plan.lane_count)]
        with self._changed:
            layer = self._layers[number]
            layer.left.add(lane)
            if len(layer.left) == len(self.lanes):
                del self._layers[number]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def rows(self, number: int, lane: int, band: int, rows: Band) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows of any lane's band, on a lane's device."""
        mine, owner, plan = self.lane(number, lane), self.plan.lanes[band], self.plan
        if owner == lane:
            return mine.own[band].cut(rows, plan.image.width)
        if owner not in mine.halos:
            for copy, arriving in self._take(number, lane, "halo"):
                assert copy.rows is not None
                key, value = arriving.take()
                needed = {b for b in plan.bands_of(copy.source) if lane in plan.sends[b]}
                mine.halos[copy.source] = Rows(copy.rows, (key, value), needed)
        return mine.halos[owner].cut(rows, plan.image.width)

    def all_pooled(self, number: int, lane: int) -> Pooled | None:
        """The pooled keys and values of all bands on a lane's device, joined once; None where there are none."""
        mine = self.lane(number, lane)
        if mine.pooled is None and mine.lane_pooled is not None:
            found = {lane: mine.lane_pooled}
            for copy, arriving in self._take(number, lane, "pooled"):
                found[copy.source] = Pooled(*arriving.take())
            mine.pooled, mine.lane_pooled = _joined([found[other] for other in sorted(found)]), None
        return mine.pooled

    def deliver(self, number: int, copy: Copy, tensors: tuple[Tensor, ...]) -> None:
        """What a lane of another process has sent to one of this process. From any thread."""
        source, plan = copy.source, self.plan
        with self._changed:
            mine = self._layer(number).lanes[copy.target]
            mine.arriving[copy] = self._transfers.start(tensors, self.devices[copy.target])
            if copy.kind == "halo" and not plan.together:
                mine.published.update(band for band in plan.bands_of(source) if copy.target in plan.sends[band])
            elif copy.kind == "partial":
                # A lane's copies come in order, and this is the last before its merge: all its bands have published.
                mine.published.update(plan.bands_of(source))
                mine.partials.add(source)
            elif copy.kind == "merged":
                mine.merges.add(source)
            self._changed.notify_all()

    def begin(self, number: int, lane: int, step: Step) -> None:
        """Note in the trace that a lane begins a step."""
        if self._trace is not None:
            self._trace.append(Event(lane, number, step))

    def finish(self, layers: int) -> None:
        """A lane has done all its layers, so many."""
        with self._changed:
            self._layers_done = layers
            self._changed.notify_all()

    def fail(self, problem: BaseException) -> None:
        """A lane failed: all others stop. Only the first failure is of interest."""
        with self._changed:
            if self.failure is None:
                self.failure = problem
            self._changed.notify_all()

    def clear(self) -> None:
        self._layers.clear()

    def _layer(self, number: int) -> LayerState:
        """Call with `_changed` held."""
        if number not in self._layers:
            self._layers[number] = LayerState(self.plan.lane_count)
        return self._layers[number]

    def _here(self, number: int) -> list[LaneLayer]:
        """A layer's lanes that this process has. Call with `_changed` held."""
        layer = self._layer(number)
        return [layer.lanes[lane] for lane in self.lanes]

    @contextmanager
    def _publishing(self, number: int, lane: int, step: Step, *, pooled: bool = False) -> Iterator[tuple[Copy, ...]]:
        """What a step sends; leaving it tells the other lanes. pooled: whether the layer has pooled keys."""
        with self._changed:
            yield copies(self.plan, lane, step, pooled=pooled)
            bands = published_by(self.plan, lane, step, pooled=pooled)
            for other in self._here(number):
                other.published.update(bands)
            self._changed.notify_all()

    def _send(self, number: int, copy: Copy, tensors: tuple[Tensor, ...]) -> None:
        """Start a copy. Call with `_changed` held."""
        kind = "text" if copy.kind in ("partial", "merged") else copy.kind
        self._sent[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self._trace is not None:
            self._trace.append(Event(copy.source, number, copy))
        if self._links is not None and copy.target not in self.lanes:
            self._links.post(number, copy, tensors)
            return
        self._layer(number).lanes[copy.target].arriving[copy] = self._transfers.start(
            tensors, self.devices[copy.target]
        )

    def _take(self, number: int, lane: int, kind: str) -> list[tuple[Copy, Arriving]]:
        """What has been sent to a lane, of one kind, in order; it is the caller's from here on."""
        with self._changed:
            arriving = self._layer(number).lanes[lane].arriving
            return [(copy, arriving.pop(copy)) for copy in [*arriving] if copy.kind == kind]

    def _arrived(self, number: int, lane: int, kind: str) -> dict[int, tuple[Tensor, ...]]:
        """What has been sent to a lane, of one kind, by lane."""
        return {copy.source: arriving.take() for copy, arriving in self._take(number, lane, kind)}


def _joined(parts: Sequence[Pooled]) -> Pooled | None:
    """Pooled keys and values of neighbouring rows side by side; None for none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return Pooled(torch.cat([part.key for part in parts], 2), torch.cat([part.value for part in parts], 2))
