"""One layer over all strips of a feature map: what is read, what is computed, where it is kept, on which device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, Storage
from .moments import Moments, strip_moments


@dataclass(frozen=True, slots=True)
class Lane:
    """A device with the model on it. model: an encoder or a decoder.

    budget: bytes of the device that one strip may take. keys: bytes of it for the attention's keys and values.
    """

    device: torch.device
    model: nn.Module
    budget: int
    keys: int


@dataclass(frozen=True, slots=True)
class Source:
    """A map that a layer reads. scale: its rows for a row of the result. halo: rows above and below the strip's own."""

    rows: FeatureMap
    scale: Fraction = Fraction(1)
    halo: tuple[int, int] = (0, 0)

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The rows that a strip of the result needs; those out of the map are left out."""
        above, below = self.halo
        first, last = int(start * self.scale) - above, int(stop * self.scale) + below
        return max(first, 0), min(last, self.rows.shape[1])


@dataclass(frozen=True, slots=True)
class Strip:
    """start, stop: its rows of the result. inputs: the rows of each source. above, below: rows of halo that the first
    has, 0 at the edges of the image."""

    start: int
    stop: int
    inputs: tuple[Tensor, ...]
    above: int
    below: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one row of a result. memory: bytes of a device while it is computed. work: products of numbers."""

    memory: int
    work: float


Compute = Callable[[nn.Module, Strip], Tensor]
"""The rows of a strip from a lane's model: [1, channels, rows, width]."""


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
        lag: bool = False,
    ) -> tuple[Tensor, Tensor] | None:
        """Compute every strip and write it; the moments by group where `groups` are asked for.

        height: rows of the result. even: strips begin at even rows. lag: a strip is written when the next is computed,
        so that the result may take the storage of a source.
        """
        cuts = self._cuts(height, cost.memory, 2 if even else 1)
        moments, failed = Moments(), threading.Event()

        def read(lane: Lane, start: int, stop: int) -> Strip:
            spans = [source.span(start, stop) for source in sources]
            inputs = tuple(source.rows.read(*span, lane.device) for source, span in zip(sources, spans, strict=True))
            first, (low, high) = sources[0], spans[0]
            above, below = int(start * first.scale) - low, high - int(stop * first.scale)
            return Strip(start, stop, inputs, above, below)

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
            waiting: tuple[int, Tensor] | None = None
            with torch.inference_mode():  # the mode belongs to a thread
                for start, stop in cuts[number :: len(self.lanes)]:
                    if failed.is_set():
                        return
                    rows = compute(lane.model, read(lane, start, stop))
                    if groups:
                        found = strip_moments(rows, groups)
                        with self._lock:
                            moments.add(start, found)
                    if waiting is not None:
                        keep(*waiting)
                    waiting = start, rows
                    if not lag:
                        keep(*waiting)
                        waiting = None
                if waiting is not None:
                    keep(*waiting)

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

    def _cuts(self, height: int, row_bytes: int, step: int) -> list[tuple[int, int]]:
        """step: rows of a strip are a multiple of it."""
        if self.strips:
            rows = -(-height // (self.strips * step)) * step
        else:
            most = min(lane.budget for lane in self.lanes) // row_bytes
            rows = max(1, min(most, -(-height // len(self.lanes))) // step) * step
        return [(start, min(start + rows, height)) for start in range(0, height, rows)]
