"""Bands in step: one forward of the model, cut into bands that hand each other keys and values layer by layer.

Workers are fibers, each inside the host's own forward:

    anchor    the text and the reference images, whole; one
    bands     rows of the image; the text they carry is a placeholder that nobody reads

A worker pauses where a block begins and where it attends. In each layer a lane takes its bands in order, as a
line buffer does: let the neighbours come as far as their keys and values, then let the band attend and finish its
block, then drop what nobody needs any more. The anchor's queries see everything: each band computes its share
of them over its own rows, and the shares are merged by their log-sum-exp, which is exact.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .exchange import OUT_OF_STEP, Exchange, Layer, OutOfStep, Stopped, Traffic
from .fibers import Fiber, same_mode
from .plan import BandPlan
from .workers import Anchor, TextMerge, Worker


class Stream:
    """One forward in bands. Make it and `run` it."""

    def __init__(self, plan: BandPlan, devices: Sequence[torch.device], text_merge: TextMerge = "exact") -> None:
        """devices: one for each lane."""
        self.plan = plan
        self._exchange = Exchange(plan, devices)
        self._text_merge: TextMerge = text_merge

    @property
    def traffic(self) -> Traffic:
        return self._exchange.traffic

    def run(self, anchor: Callable[[Anchor], Tensor], band: Callable[[Worker], Tensor]) -> list[Tensor]:
        """Run the forward of the anchor and of every band; the bands' outputs, top to bottom.

        Raises the first worker's exception as it is, with no thread left behind.
        """
        lanes = [
            _Lane(self._exchange, number, self._text_merge, anchor, band) for number in range(self.plan.lane_count)
        ]
        helpers = []
        for lane in lanes[1:]:
            enter = same_mode(self._exchange.devices[lane.number])
            helpers.append(
                threading.Thread(
                    target=self._guarded, args=(lane, enter), name=f"clear-lane-{lane.number}", daemon=True
                )
            )
        for helper in helpers:
            helper.start()
        try:
            self._guarded(lanes[0], nullcontext)
        finally:
            for helper in helpers:
                helper.join()
            self._exchange.clear()
        if self._exchange.failure is not None:
            raise self._exchange.failure
        return [output for lane in lanes for output in lane.outputs]

    def _guarded(self, lane: _Lane, enter: Callable[[], AbstractContextManager[object]]) -> None:
        try:
            with enter():
                self._exchange.finish(lane.run())
        except Stopped:
            pass
        except BaseException as problem:
            self._exchange.fail(problem)


class _Lane:
    """The bands of one device, one at a time; lane 0 has the anchor too."""

    def __init__(
        self,
        exchange: Exchange,
        number: int,
        text_merge: TextMerge,
        anchor: Callable[[Anchor], Tensor],
        band: Callable[[Worker], Tensor],
    ) -> None:
        self.exchange = exchange
        self.number = number
        self.outputs: list[Tensor] = []
        self._fibers: dict[int, Fiber[Tensor]] = {}
        for index in exchange.plan.bands_of(number):
            worker = Worker(exchange, number, index, text_merge)
            self._fibers[index] = worker.start(lambda worker=worker: band(worker), f"clear-band-{index}")
        self._anchor: Fiber[Tensor] | None = None
        if number == 0:
            step = Anchor(exchange, 0, text_merge)
            self._anchor = step.start(lambda: anchor(step), "clear-anchor")

    def run(self) -> int:
        """Until every worker has finished; the number of attention layers."""
        every = [*([self._anchor] if self._anchor is not None else []), *self._fibers.values()]
        try:
            for fiber in every:
                fiber.resume()  # as far as its first block
            number = 0
            while self._running(every):
                self._run_layer(number)
                number += 1
            self.outputs = [fiber.take_result() for fiber in self._fibers.values()]
            return number
        finally:
            for fiber in every:
                fiber.cancel()

    def _running(self, every: list[Fiber[Tensor]]) -> bool:
        places = {("end", None) if fiber.finished else fiber.place for fiber in every}
        if len(places) > 1:
            raise OutOfStep(OUT_OF_STEP.format(", ".join(sorted(map(str, places)))))
        return places != {("end", None)}

    def _run_layer(self, number: int) -> None:
        exchange, plan = self.exchange, self.exchange.plan
        if self._anchor is not None:
            self._to_attention(self._anchor, number)
        arrived: set[int] = set()

        def arrive(band: int) -> None:
            if band not in arrived:
                self._to_attention(self._fibers[band], number)
                arrived.add(band)

        for band in plan.borders[self.number]:
            arrive(band)
        for band, fiber in self._fibers.items():
            for other in plan.awaits[band]:
                if plan.lanes[other] == self.number:
                    arrive(other)
            with exchange.layer(number) as layer:
                exchange.wait(number, lambda band=band, layer=layer: self._ready(layer, band))
            fiber.resume()
        with exchange.layer(number) as layer:
            layer.lanes_done += 1
        if self._anchor is not None:
            with exchange.layer(number) as layer:
                exchange.wait(number, lambda: layer.lanes_done == plan.lane_count)
            self._anchor.resume()

    def _ready(self, layer: Layer, band: int) -> bool:
        return 0 in layer.anchor and layer.published.issuperset(self.exchange.plan.awaits[band])

    def _to_attention(self, fiber: Fiber[Tensor], number: int) -> None:
        fiber.resume()
        if fiber.finished or fiber.place != ("attention", number):
            where = "the end" if fiber.finished else fiber.place
            raise OutOfStep(OUT_OF_STEP.format(f"attention {number} expected, now at {where}"))
