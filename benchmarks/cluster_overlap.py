"""A forward on two machines with a slow link, measured and as the model says: does what travels hide behind the work?

Two processes in network namespaces, the link between them slowed by `tc tbf`. The model is given what the same
processes measured just before: the steps of a lane alone, the link's rate and latency from messages. Where work is
sleep, the schedule and the transport alone are measured, also on a machine whose cores others use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from clear_core.bands.plan import BandPlan
from clear_core.bands.replay import Costs, Route
from clear_core.bands.schedule import Copy, copies, schedule
from clear_core.bands.simulate import copy_bytes, simulate
from clear_core.cluster.machines import Link

from .cluster_overlap_rank import plan_of
from core.attention_only import HEAD_DIM, HEADS, TEXT
from core.cluster_net import BRIDGE, Net, machine
from core.cluster_ranks import Rank, Ranks

ROOT = Path(__file__).resolve().parents[1]
_SMALL = 1  # bytes of a message that takes the latency alone


@dataclass(frozen=True, slots=True)
class Work:
    """sleep: seconds of a row before it attends and after, and of the text; None: attention is computed."""

    name: str
    image: tuple[int, int]
    sleep: tuple[float, float, float] | None
    rates: tuple[int, ...]
    """Mbit/s."""
    bands: int = 8
    radius: int = 8
    layers: int = 8

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


WORKS = (
    Work("sleep", (64, 512), (0.0005, 0.002, 0.001), (120, 60, 30, 15)),
    Work("attention", (64, 64), None, (15,)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """mbits: of the link as it was set. link: as measured. seconds: of a forward, computing: the same on a fast link.

    Each of these two measured and predicted. copying: seconds that the busier direction of the link carries copies.
    """

    work: str
    mbits: int
    link: Link
    seconds: tuple[float, float]
    computing: tuple[float, float]
    copying: float
    repeats: int

    @property
    def overlap(self) -> tuple[float, float]:
        """The share of the copies' time that the forward does not wait for: measured, predicted."""
        waited = (whole - alone for whole, alone in zip(self.seconds, self.computing, strict=True))
        measured, predicted = (min(1.0, max(0.0, 1 - each / self.copying)) for each in waited)
        return measured, predicted

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "overlap": self.overlap}


class _Pair:
    """Two machines and the link between them."""

    def __init__(self) -> None:
        self._net = Net()
        self.machines = [machine("benchmarks.cluster_overlap_rank") for _ in range(2)]
        ranks = Ranks(self.machines, [self._net.plug(rank) for rank in self.machines], BRIDGE)
        ranks.join(self.machines)
        self._numbers = count(0, 1000)

    def both(self, name: str, /, **what: Any) -> list[Any]:
        for rank in self.machines:
            rank.ask(**what)
        return [rank.answer_with(name)[name] for rank in self.machines]

    def slow(self, mbits: int) -> None:
        self._net.slow(self.machines[1], f"{mbits}mbit", burst="8kb")

    def quicken(self) -> None:
        self._net.quicken(self.machines[1])

    def link(self, size: int) -> Link:
        """As messages of a size see it while both directions are busy, as they are in a forward."""
        (small, large), _ = self.both("probe", forward=next(self._numbers), probe=[_SMALL, size], repeats=3)
        return Link(size / max(large - small, 1e-6), small)

    def seconds(self, work: Work) -> float:
        """Of a forward, until the last machine is done."""
        return max(self.both("timed", timed=True, forward=next(self._numbers), **work.as_dict()))

    def steps(self, work: Work) -> list[dict[str, float]]:
        """Of each machine, the mean seconds of each kind of step."""
        return self.both("alone", alone=True, **work.as_dict())


def measure(pair: _Pair, work: Work, repeats: int) -> list[Row]:
    plan, rows = plan_of(work.as_dict(), 2), list[Row]()
    size = max(_bytes(plan, copy) for copy in _sent(plan, 0))
    pair.seconds(work)  # what is made once
    for mbits in work.rates:
        steps, fast, slow = list[list[dict[str, float]]](), list[float](), list[float]()
        links = list[Link]()
        for _ in range(repeats):  # in turn: other programs may use the cores meanwhile
            steps.append(pair.steps(work))
            fast.append(pair.seconds(work))
            pair.slow(mbits)
            links.append(pair.link(size))
            slow.append(pair.seconds(work))
            pair.quicken()
        link = Link(median(each.bytes_per_second for each in links), median(each.latency_seconds for each in links))

        def route(copy: Copy, link: Link = link) -> Route:
            seconds = _bytes(plan, copy) / link.bytes_per_second
            return Route((((copy.source, copy.target), seconds),), link.latency_seconds)

        costs = [_costs(each) for each in zip(*steps, strict=True)]
        predicted = simulate(plan, [replace(each, copy=route) for each in costs], work.layers).seconds
        instant = simulate(plan, costs, work.layers).seconds
        busy = max(sum(_bytes(plan, copy) for copy in _sent(plan, lane)) for lane in range(2)) / link.bytes_per_second
        rows.append(
            Row(work.name, mbits, link, (median(slow), predicted), (median(fast), instant), busy * work.layers, repeats)
        )
    return rows


def _sent(plan: BandPlan, lane: int) -> list[Copy]:
    return [copy for step in schedule(plan, lane) for copy in copies(plan, lane, step, pooled=False)]


def _bytes(plan: BandPlan, copy: Copy) -> int:
    return copy_bytes(plan, copy, TEXT, channels=HEADS * HEAD_DIM, head_dim=HEAD_DIM, size=4)


def _costs(steps: Sequence[dict[str, float]]) -> Costs:
    """steps: seconds of each kind, some times; the median counts. Copies take no time."""

    def seconds(*kinds: str) -> float:
        return median(sum(each[kind] for kind in kinds) for each in steps) / len(kinds)

    return Costs(
        publish=seconds("Publish"),
        attend=seconds("Attend"),
        replicated=seconds("PublishReplicated", "AttendReplicated"),
        merge=seconds("PublishPartial", "MergePartial"),
        copy=lambda copy: Route(()),
    )


def table(rows: list[Row]) -> str:
    lines = [
        "| Work | Link | as measured | Copies | Forward | predicted | ratio | Overlap | predicted |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        measured, predicted = row.seconds
        link = f"{row.link.bytes_per_second * 8 / 1e6:.1f} Mbit/s, {row.link.latency_seconds * 1e3:.1f} ms"
        overlap = " | ".join(f"{each:.0%}" for each in row.overlap)
        lines.append(
            f"| {row.work} | {row.mbits} Mbit/s | {link} | {row.copying:.2f} s | {measured:.3f} s | {predicted:.3f} s "
            f"| {measured / predicted:.2f} | {overlap} |"
        )
    return "\n".join(lines)


def described() -> str:
    """Forwards of each kind of work."""
    return "; ".join(
        f"{work.name}: {work.layers} layers of {work.image[0]} x {work.image[1]} tokens, radius {work.radius}"
        for work in WORKS
    )


def rows(repeats: int) -> list[Row]:
    """All of it, in a network of its own: needs no root. Raises RuntimeError with what was said where it fails."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-m", __name__, str(repeats)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the two machines ended with {done.returncode}; Linux with user namespaces is needed")
    return [_row(each) for each in json.loads(done.stdout)]


def _row(given: dict[str, Any]) -> Row:
    """What `Row.as_dict` has become as JSON."""
    return Row(
        work=given["work"],
        mbits=given["mbits"],
        link=Link(**given["link"]),
        seconds=tuple(given["seconds"]),
        computing=tuple(given["computing"]),
        copying=given["copying"],
        repeats=given["repeats"],
    )


def main() -> None:
    machines: list[Rank] = []
    try:
        pair = _Pair()
        machines = pair.machines
        found = [row for work in WORKS for row in measure(pair, work, int(sys.argv[1]))]
    finally:
        for rank in machines:
            rank.kill()
    print(json.dumps([row.as_dict() for row in found]))


if __name__ == "__main__":
    main()
