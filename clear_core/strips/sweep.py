"""One layer over all strips of a feature map: what is read, what is computed, where it is kept, on which device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, Shape, Storage
from .moments import Moments, strip_moments

_ROWS = 16
"""A strip has as many rows if it can: with fewer, most of the work is its halo."""
WIDE: Final = 4
"""Times a lane's budget that a strip may take to have them."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A device with the model on it. model: an encoder or a decoder.

    budget: bytes of the device that one strip takes, `WIDE` times as many where rows are wide. keys: bytes of it for
    the attention's keys and values.
    """

    device: torch.device
    model: nn.Module
    budget: int
    keys: int


@dataclass(frozen=True, slots=True)
class Strip:
    """start, stop: its rows of the result. inputs: the rows of each source. above, below: rows of halo that the first
    has, fewer at the edges of the image."""

    start: int
    stop: int
    inputs: tuple[Tensor, ...]
    above: int
    below: int


Compute = Callable[[nn.Module, Strip], Tensor]
"""The rows of a strip from a lane's model: [1, channels, rows, width]."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one row of a result. memory: bytes of a device while it is computed. work: products of numbers."""

    memory: int
    work: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.memory + other.memory, self.work + other.work)


NOTHING: Final = Cost(0, 0)


@dataclass(frozen=True, slots=True)
class Source:
    """A map that a layer reads. scale: its rows for a row of the result. halo: rows above and below the strip's own."""

    rows: FeatureMap | Computed
    scale: Fraction = Fraction(1)
    halo: tuple[int, int] = (0, 0)

    def read(self, start: int, stop: int, lane: Lane) -> Strip:
        """The rows that a strip of the result needs; those out of the map are left out."""
        first, last = int(start * self.scale), int(stop * self.scale)
        low, high = max(first - self.halo[0], 0), min(last + self.halo[1], self.rows.shape[1])
        if isinstance(self.rows, Computed):
            rows = self.rows.read(low, high, lane)
        else:
            rows = self.rows.read(low, high, lane.device)
        return Strip(start, stop, (rows,), first - low, high - last)


@dataclass(frozen=True, slots=True)
class Computed:
    """A map that is not kept: its rows are computed whenever they are read.

    step: rows are computed in multiples of it. cost: of a row.
    """

    shape: Shape
    source: Source
    compute: Compute
    cost: Cost
    step: int = 1

    def read(self, start: int, stop: int, lane: Lane) -> Tensor:
        first = start - start % self.step
        last = min(stop + -stop % self.step, self.shape[1])
        rows = self.compute(lane.model, self.source.read(first, last, lane))
        return rows[:, :, start - first : stop - first]


def cost_with_sources(cost: Cost, sources: Sequence[Source]) -> Cost:
    """Of a layer, with what its computed sources cost each time."""
    computed = (source.rows for source in sources if isinstance(source.rows, Computed))
    return sum((rows.cost for rows in computed), cost)


@dataclass(slots=True)
class Sweeps:
    """Runs layers over strips, and asks before each strip whether to go on.

    strips: of each map; 0 for as few as fit into the lanes' budgets. tick: called after each strip with its work, in
    products of numbers; it raises to stop.
    """

    lanes: Sequence[Lane]
    storage: Storage
    strips: int = 0
    tick: Callable[[float], None] = lambda work: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        sources: Sequence[Source],
        compute: Compute,
        write: Callable[[int, Tensor], None],
        height: int,
        cost: Cost,
        *,
        groups: int = 0,
        even: bool = False,
        lag: int = 0,
    ) -> tuple[Tensor, Tensor] | None:
        """Compute every strip and write it; the moments by group where `groups` are asked for.

        height: rows of the result. cost: of a row, without what computed sources cost. even: strips begin at even rows.
        lag: the last rows, so many, are written later, so that the result may take the storage of a source with that
        halo.
        """
        cost = cost_with_sources(cost, sources)
        cuts = self.cuts(height, cost.memory, 2 if even else 1)
        moments, failed = Moments(), threading.Event()

        def read(lane: Lane, start: int, stop: int) -> Strip:
            parts = [source.read(start, stop, lane) for source in sources]
            return Strip(start, stop, tuple(part.inputs[0] for part in parts), parts[0].above, parts[0].below)

        def keep(start: int, rows: Tensor) -> None:
            write(start, rows)
            with self._lock:
                if failed.is_set():
                    return
                try:
                    self.tick(rows.shape[2] * cost.work)
                except BaseException:
                    failed.set()  # under the lock: no other lane asks again
                    raise

        def work(number: int) -> None:
            lane = self.lanes[number]
            waiting: deque[tuple[int, Tensor]] = deque()
            with torch.inference_mode():  # the mode belongs to a thread
                for start, stop in cuts[number :: len(self.lanes)]:
                    if failed.is_set():
                        return
                    rows = compute(lane.model, read(lane, start, stop))
                    if groups:
                        found = strip_moments(rows, groups)
                        with self._lock:
                            moments.add(start, found)
                    waiting.append((start, rows))
                    while waiting and (stop == height or waiting[0][0] + waiting[0][1].shape[2] <= stop - lag):
                        keep(*waiting.popleft())

        def work_or_fail(number: int) -> None:
            try:
                work(number)
            except BaseException:
                failed.set()
                raise

        if len(self.lanes) == 1:
            work(0)
        else:
            assert not lag, "lanes would overwrite rows that others still read"
            with ThreadPoolExecutor(len(self.lanes)) as pool:
                list(pool.map(work_or_fail, range(len(self.lanes))))
        return moments.merged() if groups else None

    def cuts(self, height: int, row_bytes: int, step: int) -> list[tuple[int, int]]:
        """step: rows of a strip are a multiple of it."""
        if self.strips:
            rows = -(-height // (self.strips * step)) * step
        else:
            budget = min(lane.budget for lane in self.lanes)
            most = max(budget // row_bytes, min(_ROWS, WIDE * budget // row_bytes))
            rows = max(1, min(most, -(-height // len(self.lanes))) // step) * step
        return [(start, min(start + rows, height)) for start in range(0, height, rows)]
