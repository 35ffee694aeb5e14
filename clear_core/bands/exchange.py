"""What the workers of one forward hand each other: keys, values and shares, layer by layer, over lanes and devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..call import AttentionResult
from ..layout import TokenLayout
from ..softmax import RunningMerge
from .plan import BandPlan

OUT_OF_STEP = (
    "The parts of the image did not do the same layers ({}). Another node skips or replaces FLUX's blocks or takes "
    "over their attention: remove it, put it before Apply CLEAR Attention, or use one band."
)


class OutOfStep(RuntimeError):
    """The workers of one forward did not do the same layers."""


class Stopped(BaseException):
    """Raised in a lane when another one failed. Not an Exception: only the first failure is of interest."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that crossed from one lane to another in one forward.

    halo: keys and values of rows. text: the anchor's queries, keys and values, and its shares. pooled: cells.
    """

    halo: int = 0
    text: int = 0
    pooled: int = 0


@dataclass(slots=True, eq=False)
class Layer:
    """What the workers of one attention layer have published so far. Guarded by the exchange."""

    uses: list[int]
    layout: TokenLayout | None = None
    anchor: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # by lane
    published: set[int] = field(default_factory=set)  # bands whose keys have come, wherever they are by now
    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pooled: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    shares: dict[int, Share] = field(default_factory=dict)  # by lane
    lanes_done: int = 0


@dataclass(slots=True, eq=False)
class Share:
    """The anchor's result over the bands of one lane. mean: the sum of the bands' own answers, and their number."""

    merged: RunningMerge = field(default_factory=RunningMerge)
    mean: Tensor | None = None
    count: int = 0

    def add_mean(self, out: Tensor) -> None:
        self.mean = out.float() if self.mean is None else self.mean + out.float()
        self.count += 1

    def on(self, exchange: Exchange, lane: int) -> SharePart:
        """What lane 0 gets of it. Call with the layer held."""
        part = self.merged.result(torch.float32)
        assert part.lse is not None
        out, lse = (exchange.moved(x, 0, lane, "text") for x in (part.out, part.lse))
        mean = None if self.mean is None else exchange.moved(self.mean, 0, lane, "text")
        return SharePart(AttentionResult(out, lse), mean, self.count)


@dataclass(frozen=True, slots=True, eq=False)
class SharePart:
    merged: AttentionResult
    mean: Tensor | None
    count: int


class Exchange:
    """The layers that are under way, and the bytes that crossed from lane to lane."""

    def __init__(self, plan: BandPlan, devices: Sequence[torch.device]) -> None:
        """devices: one for each lane."""
        self.plan = plan
        self.devices = tuple(devices)
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._layers: dict[int, Layer] = {}
        self._layers_done: int | None = None  # of a lane that has finished
        self._sent = {"halo": 0, "text": 0, "pooled": 0}

    @property
    def traffic(self) -> Traffic:
        return Traffic(**self._sent)

    @contextmanager
    def layer(self, number: int) -> Iterator[Layer]:
        """A layer's state, held until it is left; leaving tells the others."""
        with self._changed:
            if number not in self._layers:
                self._layers[number] = Layer(list(self.plan.uses))
            try:
                yield self._layers[number]
            finally:
                self._changed.notify_all()

    def wait(self, number: int, ready: Callable[[], bool]) -> None:
        """Until other lanes have done their part of a layer. Call with `layer` held."""
        while True:
            if self.failure is not None:
                raise Stopped  # at once, also where nothing is to be waited for
            if ready():
                return
            if self._layers_done is not None and number >= self._layers_done:
                raise OutOfStep(OUT_OF_STEP.format("one device has finished, another has not"))
            self._changed.wait()

    def drop(self, number: int) -> None:
        """Call with `layer` held, when nobody needs the layer any more."""
        del self._layers[number]

    def moved(self, tensor: Tensor, lane: int, owner: int, kind: str) -> Tensor:
        """A tensor on a lane's device; what crosses lanes is counted. Call with `layer` held."""
        if lane == owner:
            return tensor
        self._sent[kind] += tensor.numel() * tensor.element_size()
        return tensor.to(self.devices[lane], non_blocking=True)

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
