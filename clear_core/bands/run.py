"""One forward of the model in bands that exchange keys and values layer by layer.

The workers are fibers, each inside the host's own forward: one for the replicated tokens (text and reference images,
on lane 0), one for each band of image rows. A worker pauses where a block begins and where it attends. A lane runs its
workers one at a time, in the order of its `schedule`; lanes run at the same time, each in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .exchange import OUT_OF_STEP, Exchange, OutOfStep, Stopped, Traffic
from .fibers import Fiber, same_mode
from .plan import BandPlan
from .schedule import Attend, AttendReplicated, Publish, PublishPartial, PublishReplicated, Step, schedule
from .workers import BandWorker, ReplicatedWorker, TextMerge


@dataclass(frozen=True, slots=True)
class Forwards:
    """The model's forward, to be run by a worker: of the replicated tokens, and of one band."""

    replicated: Callable[[ReplicatedWorker], Tensor]
    band: Callable[[BandWorker], Tensor]


class BandedForward:
    """One forward in bands. Make it and `run` it."""

    def __init__(self, plan: BandPlan, devices: Sequence[torch.device], text_merge: TextMerge = "exact") -> None:
        """devices: one for each lane."""
        self.plan = plan
        self._exchange = Exchange(plan, devices)
        self._text_merge: TextMerge = text_merge

    @property
    def traffic(self) -> Traffic:
        return self._exchange.traffic

    def run(self, forwards: Forwards) -> list[Tensor]:
        """Run the forward of the replicated tokens and of every band; the bands' outputs, top to bottom.

        Raises the first worker's exception as it is, with no thread left behind.
        """
        lanes = [_Lane(self._exchange, number, self._text_merge, forwards) for number in range(self.plan.lane_count)]
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
    """The bands of one lane, one at a time; lane 0 has the replicated tokens too."""

    def __init__(self, exchange: Exchange, number: int, text_merge: TextMerge, forwards: Forwards) -> None:
        self.number = number
        self.outputs: list[Tensor] = []
        self._exchange = exchange
        self._schedule = schedule(exchange.plan, number)
        self._bands: dict[int, Fiber[Tensor]] = {}
        self._replicated: Fiber[Tensor] | None = None
        for step in self._schedule:
            if isinstance(step, PublishReplicated):
                text = ReplicatedWorker(exchange, number, text_merge)
                self._replicated = text.start(lambda text=text: forwards.replicated(text), "clear-text")
            elif isinstance(step, Attend):
                band = BandWorker(exchange, number, step, text_merge)
                self._bands[step.band] = band.start(lambda band=band: forwards.band(band), f"clear-band-{step.band}")

    def run(self) -> int:
        """Until every worker has finished; the number of attention layers."""
        workers = [*([self._replicated] if self._replicated is not None else []), *self._bands.values()]
        try:
            for fiber in workers:
                fiber.resume()  # as far as its first block
            number = 0
            while self._running(workers):
                for step in self._schedule:
                    self._exchange.wait(number, step)
                    self._execute(step, number)
                number += 1
            self.outputs = [fiber.take_result() for fiber in self._bands.values()]
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
            self._to_attention(self._bands[step.band], number)
        elif isinstance(step, Attend):
            self._bands[step.band].resume()
        elif isinstance(step, PublishPartial):
            with self._exchange.layer(number) as layer:
                layer.lanes_done.add(step.lane)
        else:
            assert self._replicated is not None
            if isinstance(step, AttendReplicated):
                self._replicated.resume()
            else:
                self._to_attention(self._replicated, number)

    def _to_attention(self, fiber: Fiber[Tensor], number: int) -> None:
        fiber.resume()
        if fiber.finished or fiber.place != ("attention", number):
            where = "the end" if fiber.finished else fiber.place
            raise OutOfStep(OUT_OF_STEP.format(f"attention {number} expected, now at {where}"))
