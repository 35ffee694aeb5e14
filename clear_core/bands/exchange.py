"""What the lanes of one forward exchange, layer by layer: halos of keys and values, text, pooled tokens.

This is context parallelism by halo exchange: a lane needs from its neighbours only the rows within the window's
reach. On one device nothing is copied, and the exchange only holds what bands still need of each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..call import AttentionResult
from ..pattern import LocalPattern
from ..pooling import Pooled
from ..softmax import RunningMerge
from .plan import BandPlan
from .schedule import Attend, AttendReplicated, Step

OUT_OF_STEP = (
    "The bands of the image did not do the same layers ({}). Another node skips or replaces FLUX's blocks or takes "
    "over their attention: remove it, put it before Apply CLEAR Attention, or use one band."
)

Kind = Literal["halo", "text", "pooled"]


class OutOfStep(RuntimeError):
    """The workers of one forward did not do the same layers."""


class Stopped(BaseException):
    """Raised in a lane when another one failed. Not an Exception: only the first failure is of interest."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that crossed from one lane to another in one forward.

    halo: keys and values of image rows. text: query, key and value of the replicated tokens, and their partial
    attention. pooled: down-sampled keys and values.
    """

    halo: int = 0
    text: int = 0
    pooled: int = 0

    @property
    def total(self) -> int:
        return self.halo + self.text + self.pooled


@dataclass(slots=True, eq=False)
class LayerExchange:
    """What the workers of one attention layer have published so far. Guarded by the exchange.

    users: for each band the lanes that still need its keys. pattern: the layer's attention pattern over the complete
    sequence, from which workers derive theirs. replicated: by lane, query, key and value of the replicated tokens.
    published: bands whose keys have come, released since or not. keys: keys and values of the bands that are still
    needed, each [batch, heads, rows * width, head_dim]. partial: by lane. lanes_done: lanes whose partial attention
    is complete.
    """

    users: list[set[int]]
    pattern: LocalPattern | None = None
    replicated: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    published: set[int] = field(default_factory=set)
    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pooled: dict[int, Pooled] = field(default_factory=dict)
    partial: dict[int, PartialAttention] = field(default_factory=dict)
    lanes_done: set[int] = field(default_factory=set)

    def ready(self, step: Step) -> bool:
        """Whether all that a step awaits has been published."""
        if isinstance(step, Attend):
            return bool(self.replicated) and self.published.issuperset(step.awaits)
        return not isinstance(step, AttendReplicated) or self.lanes_done.issuperset(step.awaits)

    def release(self, bands: Sequence[int], lane: int) -> None:
        """A lane needs the keys of some bands no more; those that no other lane needs are freed."""
        for band in bands:
            self.users[band].discard(lane)
            if not self.users[band]:
                del self.keys[band]


@dataclass(slots=True, eq=False)
class PartialAttention:
    """The replicated tokens' attention (out, lse) over the rows of one lane, merged band by band.

    total, count: for text_merge "average", the sum of the text's output over the bands and how many these are.
    """

    merged: RunningMerge = field(default_factory=RunningMerge)
    total: Tensor | None = None
    count: int = 0

    def add(self, result: AttentionResult, text: Tensor | None) -> None:
        """One more band. result: the tokens over its rows. text: the text over its rows and all replicated tokens."""
        self.merged.add(result)
        if text is not None:
            self.total = text.float() if self.total is None else self.total + text.float()
            self.count += 1


class Exchange:
    """The layers that are under way, and the bytes that crossed from lane to lane."""

    def __init__(self, plan: BandPlan, devices: Sequence[torch.device]) -> None:
        """devices: one for each lane."""
        self.plan = plan
        self.devices = tuple(devices)
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._layers: dict[int, LayerExchange] = {}
        self._layers_done: int | None = None  # of a lane that has finished
        self._sent: dict[Kind, int] = {"halo": 0, "text": 0, "pooled": 0}

    @property
    def traffic(self) -> Traffic:
        return Traffic(**self._sent)

    @contextmanager
    def layer(self, number: int) -> Iterator[LayerExchange]:
        """A layer's state, held until it is left; leaving tells the others."""
        with self._changed:
            if number not in self._layers:
                self._layers[number] = LayerExchange([set(lanes) for lanes in self.plan.users])
            try:
                yield self._layers[number]
            finally:
                self._changed.notify_all()

    def wait(self, number: int, step: Step) -> None:
        """Until other lanes have published all that a step awaits. Raises Stopped when one of them failed."""
        with self.layer(number) as layer:
            while True:
                if self.failure is not None:
                    raise Stopped  # at once, also where there is nothing to wait for
                if layer.ready(step):
                    return
                if self._layers_done is not None and number >= self._layers_done:
                    raise OutOfStep(OUT_OF_STEP.format("one device has finished, another has not"))
                self._changed.wait()

    def drop(self, number: int) -> None:
        """Call with `layer` held, when no lane needs the layer any more."""
        del self._layers[number]

    def copied(self, tensor: Tensor, lane: int, owner: int, kind: Kind) -> Tensor:
        """A tensor of the lane `owner` on another lane's device; what crosses is counted. Call with `layer` held."""
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
