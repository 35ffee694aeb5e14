"""One of two ranks of `cluster_overlap`: what its link carries, what its steps take alone, and forwards that are timed.

    python -m benchmarks.cluster_overlap_rank

Told by lines of JSON, as `core.cluster_rank` is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from clear_core.bands.exchange import Event
from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward, Forwards
from clear_core.bands.schedule import Attend, Publish
from clear_core.bands.workers import BandWorker, ReplicatedWorker
from clear_core.call import AttentionResult
from clear_core.cluster.c10d import C10dTransport
from clear_core.cluster.transport import ForwardLinks, Router
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled
from clear_core.window import Window

from core.attention_only import HEAD_DIM, HEADS, TEXT, forwards
from core.cluster_rank import main, tell

_CPU = torch.device("cpu")


class Stamps(list[Event]):
    """A trace that knows when each event began."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def append(self, event: Event, /) -> None:
        super().append(event)
        self.at.append(time.monotonic())


def sleeping(plan: BandPlan, layers: int, row: tuple[float, float], text: float) -> Forwards:
    """Of tokens like those of `attention_only`, with sleep in the place of arithmetic.

    row: seconds for a row, before it attends and from there on. text: the same for the text, both equal.
    """
    pattern = LocalPattern.whole(TokenLayout(TEXT, plan.image, ()), plan.window or Window(99))

    def compute(
        query: Tensor, key: Tensor, value: Tensor, /, pattern: LocalPattern, pooled: Pooled | None, *, return_lse: bool
    ) -> AttentionResult:
        return AttentionResult(query.transpose(1, 2).flatten(2), query[..., 0])

    def replicated(worker: ReplicatedWorker) -> Tensor:
        part = torch.zeros(1, HEADS, TEXT + 1, HEAD_DIM)
        for layer in range(layers):
            worker.at_block(layer)
            time.sleep(text)
            worker.attend(part, part, part, pattern, compute)
            time.sleep(text)
        return part

    def band(worker: BandWorker) -> Tensor:
        rows = len(worker.rows)
        part = torch.zeros(1, HEADS, 1 + rows * plan.image.width, HEAD_DIM)
        for layer in range(layers):
            worker.at_block(layer)
            time.sleep(row[0] * rows)
            worker.attend(part, part, part, compute, None)
            time.sleep(row[1] * rows)
        return part[:, :, 1:]

    return Forwards(replicated, band)


def plan_of(asked: dict[str, Any], lanes: int) -> BandPlan:
    return BandPlan.cut(Grid(*asked["image"]), asked["bands"], Window(asked["radius"]), shares=[1.0] * lanes)


def _forwards(plan: BandPlan, asked: dict[str, Any]) -> Forwards:
    if asked["sleep"] is None:
        return forwards(plan, asked["layers"])
    before, after, text = asked["sleep"]
    return sleeping(plan, asked["layers"], (before, after), text)


def alone(router: Router, transport: C10dTransport, asked: dict[str, Any]) -> None:
    """The mean seconds of each kind of step, of one row where it is of a band: no other lane, nothing to wait for."""
    plan, trace, found = plan_of(asked, 1), Stamps(), defaultdict[str, list[float]](list)
    BandedForward(plan, [_CPU], trace=trace).run(_forwards(plan, asked))
    for event, begin, end in zip(trace, trace.at, trace.at[1:], strict=False):
        what = event.what
        rows = len(plan.bands[what.band]) if isinstance(what, (Publish, Attend)) else 1
        found[type(what).__name__].append((end - begin) / rows)
    tell(alone={kind: mean(seconds) for kind, seconds in found.items()})


def probe(router: Router, transport: C10dTransport, asked: dict[str, Any]) -> None:
    """Messages of some sizes to the other rank, which sends as much at the same time: the median seconds of each."""
    links, other = router.forward(asked["forward"], (0, 1)), 1 - transport.rank
    found: list[float] = []
    for number, size in enumerate(asked["probe"]):
        seconds: list[float] = []
        for turn in range(number * 100, number * 100 + asked["repeats"]):
            _meet(links, other, turn)
            began = time.monotonic()
            links.send(other, "given", turn, (torch.zeros(size, dtype=torch.uint8),))
            links.receive(other, "given", turn)
            seconds.append(time.monotonic() - began)
        found.append(median(seconds))
    links.end()
    tell(probe=found)


def timed(router: Router, transport: C10dTransport, asked: dict[str, Any]) -> None:
    """Seconds of a forward."""
    plan, links = plan_of(asked, 2), router.forward(asked["forward"], (0, 1))
    run, work = BandedForward(plan, [_CPU] * 2, links=links), _forwards(plan, asked)
    _meet(links, 1 - transport.rank, 0)
    began = time.monotonic()
    run.run(work)
    tell(timed=time.monotonic() - began)
    links.end()


def _meet(links: ForwardLinks, other: int, turn: int) -> None:
    """Until both are here."""
    links.send(other, "output", turn, (torch.zeros(1),))
    links.receive(other, "output", turn)


if __name__ == "__main__":
    main({"alone": alone, "probe": probe, "timed": timed})
