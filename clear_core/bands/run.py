"""One forward of the model in bands that exchange keys and values layer by layer.

The workers are fibers, each inside the host's own forward: on every lane one for the replicated tokens (text and
reference images), and one for each band of image rows. A worker pauses where a block begins and where it attends.
A lane runs its workers one at a time, in the order of its `schedule`; lanes run at the same time, each in a thread of
its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .exchange import OUT_OF_STEP, Event, Exchange, OutOfStep, Stopped, Traffic
from .fibers import Fiber, same_mode
from .plan import BandPlan
from .remote import Links, PeerError
from .schedule import Attend, AttendReplicated, MergePartial, Publish, PublishPartial, Step, schedule
from .transfer import Transfers
from .workers import BandWorker, ReplicatedWorker, TextMerge

AroundLayer = Callable[[int, int], AbstractContextManager[object]]
"""Entered by a lane around what all its workers do in one layer: called with the lane and the layer, -1 for what comes
before the first block. The last layer includes what comes after the last block."""


@dataclass(frozen=True, slots=True)
class Forwards:
    """The model's forward, to be run by a worker: of the replicated tokens, and of one band.

    around_layer: where a lane prepares what its workers share, such as the weights of a block.
    """

    replicated: Callable[[ReplicatedWorker], Tensor]
    band: Callable[[BandWorker], Tensor]
    around_layer: AroundLayer = lambda lane, layer: nullcontext()


class BandedForward:
    """One forward in bands. Make it and `run` it."""

    def __init__(
        self,
        plan: BandPlan,
        devices: Sequence[torch.device],
        text_merge: TextMerge = "exact",
        *,
        transfers: Transfers | None = None,
        trace: list[Event] | None = None,
        links: Links | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """devices: one for each lane. transfers: the streams of copies between them, kept from forward to forward.

        trace: a list that is given each lane's steps and copies, in the lane's order. links: to lanes of other
        processes, which run the same plan; None where this process has all lanes. check: called while a lane waits
        for those; may raise to end the forward.
        """
        self.plan = plan
        self._links = links
        self._exchange = Exchange(plan, devices, transfers, trace, links, check)
        self._text_merge: TextMerge = text_merge

    @property
    def lanes(self) -> range:
        """Of the plan, those of this process."""
        return self._exchange.lanes

    @property
    def traffic(self) -> Traffic:
        return self._exchange.traffic

    def run(self, forwards: Forwards) -> list[Tensor]:
        """Run the forward of the replicated tokens and of every band of this process's lanes; the bands' outputs, top
        to bottom.

        Raises the first worker's exception as it is, with no thread left behind.
        """
        lanes = [_Lane(self._exchange, number, self._text_merge, forwards) for number in self._exchange.lanes]
        helpers = []
        for lane in lanes[1:]:
            enter = same_mode(self._exchange.devices[lane.number])
            helpers.append(
                threading.Thread(
                    target=self._guarded, args=(lane, enter), name=f"clear-lane-{lane.number}", daemon=True
                )
            )
        if self._links is not None:
            self._links.open(self._exchange.deliver, self._exchange.fail)
        for helper in helpers:
            helper.start()
        try:
            self._guarded(lanes[0], nullcontext)
        finally:
            for helper in helpers:
                helper.join()
            if self._links is not None:
                if self._exchange.failure is not None and not isinstance(self._exchange.failure, PeerError):
                    self._links.failed(self._exchange.failure)
                self._links.close()
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
    """The replicated tokens and the bands of one lane, one at a time."""

    def __init__(self, exchange: Exchange, number: int, text_merge: TextMerge, forwards: Forwards) -> None:
        self.number = number
        self.outputs: list[Tensor] = []
        self._exchange = exchange
        self._around = forwards.around_layer
        self._schedule = schedule(exchange.plan, number)
        text = ReplicatedWorker(exchange, number, text_merge)
        self._replicated = text.start(lambda: forwards.replicated(text), "the text")
        self._bands: dict[int, Fiber[Tensor]] = {}
        for step in self._schedule:
            if isinstance(step, Attend):
                band = BandWorker(exchange, number, step, text_merge)
                self._bands[step.band] = band.start(lambda band=band: forwards.band(band), f"band {step.band}")

    def run(self) -> int:
        """Until every worker has finished; the number of attention layers."""
        workers = [self._replicated, *self._bands.values()]
        try:
            with self._around(self.number, -1):
                for fiber in workers:
                    fiber.resume()  # as far as its first block
            number = 0
            while self._running(workers):
                with self._around(self.number, number):
                    for step in self._schedule:
                        self._exchange.wait(number, self.number, step)
                        self._exchange.begin(number, self.number, step)
                        self._execute(step, number)
                number += 1
            self._replicated.take_result()
            self.outputs = [self._bands[band].take_result() for band in sorted(self._bands)]
            return number
        finally:
            for fiber in workers:
                fiber.cancel()

    def _running(self, workers: list[Fiber[Tensor]]) -> bool:
        places = {("end", None) if fiber.finished else fiber.place for fiber in workers}
        if len(places) > 1:
            raise OutOfStep(OUT_OF_STEP.format(", ".join(sorted(map(str, places)))))
        return places != {("end", None)}

    def _execute(self, step: Step, number: int) -> None:
        if isinstance(step, Publish):
            self._to(("attention", number), self._bands[step.band])
        elif isinstance(step, Attend):
            self._bands[step.band].resume()
        elif isinstance(step, PublishPartial):
            self._exchange.publish_partial(number, step.lane)
        elif isinstance(step, MergePartial):
            self._to(("merged", number), self._replicated)
        elif isinstance(step, AttendReplicated):
            self._replicated.resume()
        else:
            self._to(("attention", number), self._replicated)

    def _to(self, place: tuple[str, int], fiber: Fiber[Tensor]) -> None:
        """Run a worker to where it must pause next."""
        fiber.resume()
        if fiber.finished or fiber.place != place:
            where = "the end" if fiber.finished else fiber.place
            raise OutOfStep(OUT_OF_STEP.format(f"{place[0]} {place[1]} expected, now at {where}"))
