"""A model of the time that one forward of FLUX.1 takes on several machines: work counted, the order of work replayed.

The replay is that of `clear_core.bands`: the steps and copies of the real schedule, with each machine's rate and each
link's. A few layers of each kind are replayed, until one leaves lanes and links as it found them, only later; from
there on all layers take the same time (`Replay.repeat`). What is not in it: the driver's handing out and collecting
latents once a step, 64 numbers a token and about 1% of what halos take; text encoders, autoencoder and sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..bands.exchange import Traffic
from ..bands.memory import LEAST_ROWS, ModelShape, lane_bytes
from ..bands.plan import BandPlan, cut_rows, halo_bytes
from ..bands.replay import Costs, Replay, Route
from ..bands.schedule import Copy, copies, schedule
from ..bands.simulate import BEFORE_DOUBLE, BEFORE_SINGLE, Card, copy_bytes, flux_costs
from ..flux import TEXT_TOKENS
from ..layout import Band, Grid
from ..window import Window
from .machines import Link, Machine, Network

LEAST_BANDS, MOST_BANDS = 4, 8
"""Bands of a machine, more where its memory asks for it. Those in the middle hide what travels from the borders; the
thinner the ones at the borders, but for a halo's rows, the earlier it starts and the later it is waited for.
"""


class DoesNotFit(ValueError):
    """A machine's memory cannot hold its rows, or there are fewer rows than machines."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What is computed: one forward of an image at batch 1. text: tokens. double, single: blocks of each kind."""

    image: Grid
    window: Window
    text: int = TEXT_TOKENS
    shape: ModelShape = field(default_factory=ModelShape)
    double: int = 19
    single: int = 38


@dataclass(frozen=True, slots=True)
class Prediction:
    """One forward on some machines; a model, not a measurement. Machines are in the order of their rows, from the top.

    seconds: of the forward. computing: the same if copies took no time. copying: seconds that the link or network card
    with the most to do is busy. sent: bytes that each machine sends in one layer.
    """

    machines: tuple[Machine, ...]
    plan: BandPlan
    seconds: float
    computing: float
    copying: float
    sent: tuple[Traffic, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of tokens of each machine: the shares of the image."""
        return tuple(
            sum(len(self.plan.bands[band]) for band in self.plan.bands_of(lane)) for lane in range(len(self.machines))
        )

    @property
    def overlap(self) -> float:
        """The share of the copies' time that the forward does not wait for, 0 to 1; 1 where nothing travels."""
        if self.copying <= 0:
            return 1.0
        return min(1.0, max(0.0, 1 - (self.seconds - self.computing) / self.copying))


def predict(
    forward: Forward,
    machines: Sequence[Machine],
    links: Mapping[tuple[str, str], Link],
    rows: Sequence[int] | None = None,
) -> Prediction:
    """machines: in the order of their rows, from the top. links: see `Network`. rows: of each, 1 at least; None: as
    their rates are.

    Raises DoesNotFit, a ValueError, where a machine's memory or the image's height is too small.
    """
    network = Network(machines, links)
    given = proportional_rows(forward, machines) if rows is None else tuple(rows)
    plan = plan_of(forward, machines, given)
    every = [
        [
            (copy, _bytes(forward, plan, copy))
            for step in schedule(plan, lane)
            for copy in copies(plan, lane, step, pooled=False)
        ]
        for lane in range(plan.lane_count)
    ]
    held: dict[object, float] = {}
    route = _router(forward, plan, machines, network)
    for copy, _ in (sent for lane in every for sent in lane):
        for what, took in route(copy).passes:
            held[what] = held.get(what, 0.0) + took
    return Prediction(
        machines=tuple(machines),
        plan=plan,
        seconds=forward_seconds(forward, plan, machines, network),
        computing=forward_seconds(forward, plan, machines, None),
        copying=max(held.values(), default=0.0) * (forward.double + forward.single),
        sent=tuple(
            Traffic(
                halo=sum(size for copy, size in lane if copy.kind == "halo"),
                text=sum(size for copy, size in lane if copy.kind != "halo"),
            )
            for lane in every
        ),
    )


def forward_seconds(forward: Forward, plan: BandPlan, machines: Sequence[Machine], network: Network | None) -> float:
    """Seconds of all blocks. network: None if copies took no time."""
    route = (lambda copy: Route(())) if network is None else _router(forward, plan, machines, network)
    replay = Replay(plan)
    for count, before in ((forward.double, BEFORE_DOUBLE), (forward.single, BEFORE_SINGLE)):
        replay.repeat([replace(_costs(forward, plan, machine, before), copy=route) for machine in machines], count)
    return replay.seconds


def least_seconds(forward: Forward, machines: Sequence[Machine], network: Network | None) -> float:
    """A forward with rows in proportion takes no less: all machines' rates, and the halos that each receives.

    In closed form. Halos count because no lane begins a layer before all have merged their text in the one before, and
    none merges before it has its halos. network: None if copies took no time.
    """
    height = forward.image.height
    if len(machines) > height:
        return float("inf")
    _, computing = _shares(forward, machines)
    if network is None:
        return computing * (forward.double + forward.single)
    halo, shape, copying = forward.window.halo, forward.shape, 0.0
    row = halo_bytes(Grid(1, forward.image.width), Window(2), shape.channels, shape.element_size, 1)
    rows, above = proportional_rows(forward, machines), 0
    for lane, machine in enumerate(machines):
        below = height - above - rows[lane]
        copying = max(copying, (min(halo, above) + min(halo, below)) * row / network.card(machine.name))
        for near in (lane - 1, lane + 1):
            if halo and 0 <= near < len(machines):
                link = network.link(machines[near].name, machine.name)
                copying = max(copying, link.seconds(min(halo, rows[near]) * row))
        above += rows[lane]
    return max(computing, copying) * (forward.double + forward.single)


def proportional_rows(forward: Forward, machines: Sequence[Machine]) -> tuple[int, ...]:
    """Rows by which all machines compute for the same time, the text that each has included; 1 at least."""
    height = forward.image.height
    if height < len(machines):
        raise DoesNotFit(f"{height} rows of tokens are too few for {len(machines)} machines: each needs one at least")
    exact, _ = _shares(forward, machines)
    found = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in by_rest[: height - sum(found)]:
        found[i] += 1
    return tuple(found)


def _shares(forward: Forward, machines: Sequence[Machine]) -> tuple[list[float], float]:
    """`proportional_rows` before rounding, and the seconds that the slowest then computes for in a layer."""
    whole = BandPlan.cut(forward.image, 1, forward.window)
    costs = [_costs(forward, whole, machine, BEFORE_SINGLE) for machine in machines]
    row = [each.publish + each.attend for each in costs]
    text = [2 * (each.replicated + each.merge) for each in costs]  # partial and merged
    taking, exact = list(range(len(machines))), [1.0] * len(machines)
    while True:
        left = forward.image.height - (len(machines) - len(taking))
        seconds = (left + sum(text[i] / row[i] for i in taking)) / sum(1 / row[i] for i in taking)
        for i in taking:
            exact[i] = (seconds - text[i]) / row[i]
        small = [i for i in taking if exact[i] < 1 - 1e-9]
        if not small:
            return exact, max([seconds, *(row[i] + text[i] for i in range(len(machines)) if i not in taking)])
        for i in small:
            exact[i] = 1.0  # a machine too slow for a row of its own has one all the same
        taking = [i for i in taking if i not in small]


def plan_of(forward: Forward, machines: Sequence[Machine], rows: Sequence[int]) -> BandPlan:
    """Bands of each machine's rows: 4 to 8, none thinner than a halo if 4 are enough, doubled until its memory holds
    them; but none of fewer than `LEAST_ROWS` rows.

    A machine alone takes one. Raises ValueError for rows that are not the image's, DoesNotFit for too little memory.
    """
    if len(rows) != len(machines) or min(rows) < 1 or sum(rows) != forward.image.height:
        raise ValueError(
            f"{len(machines)} machines need 1 row or more each and {forward.image.height} together, got {tuple(rows)}"
        )
    thin = max(forward.window.halo, 1)
    wanted = [max(LEAST_BANDS, min(MOST_BANDS, each // thin)) if len(machines) > 1 else 1 for each in rows]
    counts = [max(1, min(count, each // LEAST_ROWS)) for count, each in zip(wanted, rows, strict=True)]
    while True:
        plan = _cut(forward, rows, counts)
        full = False
        for lane, (machine, most) in enumerate(zip(machines, rows, strict=True)):
            if machine.memory is None:
                continue
            needed = lane_bytes(plan, lane, forward.text, forward.shape)
            if needed <= machine.memory:
                continue
            if 2 * counts[lane] * LEAST_ROWS > most:
                raise DoesNotFit(
                    f"{most} rows need {needed / 2**30:.1f} GiB beside the weights on {machine.name}, which has "
                    f"{machine.memory / 2**30:.1f}"
                )
            counts[lane], full = 2 * counts[lane], True
        if not full:
            return plan


def _cut(forward: Forward, rows: Sequence[int], counts: Sequence[int]) -> BandPlan:
    edges = [0]
    for each in rows:
        edges.append(edges[-1] + each)
    bands, lanes = list[Band](), list[int]()
    for lane, ((top, bottom), count) in enumerate(zip(pairwise(edges), counts, strict=True)):
        cut = cut_rows(bottom - top, count)
        bands += [Band(top + band.start, top + band.stop) for band in cut]
        lanes += [lane] * len(cut)
    return BandPlan(forward.image, tuple(bands), tuple(lanes), forward.window)


def _costs(forward: Forward, plan: BandPlan, machine: Machine, before: int) -> Costs:
    card = Card(machine.flops, machine.attention, float("inf"))
    shape = forward.shape
    return flux_costs(plan, card, forward.text, channels=shape.channels, size=shape.element_size, before=before)


def _bytes(forward: Forward, plan: BandPlan, copy: Copy) -> int:
    shape = forward.shape
    return copy_bytes(
        plan, copy, forward.text, channels=shape.channels, head_dim=shape.head_dim, size=shape.element_size
    )


def _router(forward: Forward, plan: BandPlan, machines: Sequence[Machine], network: Network) -> Callable[[Copy], Route]:
    """Each copy's route: the network card that sends it, the link, the network card that receives it."""

    def route(copy: Copy) -> Route:
        size, source, target = _bytes(forward, plan, copy), machines[copy.source].name, machines[copy.target].name
        link = network.link(source, target)
        passes = (
            (("sends", copy.source), size / network.card(source)),
            ((copy.source, copy.target), size / link.bytes_per_second),
            (("receives", copy.target), size / network.card(target)),
        )
        return Route(passes, link.latency_seconds)

    return route
