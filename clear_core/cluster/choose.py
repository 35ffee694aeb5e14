"""Which machines are worth it: the driver's own and those others that make a forward shorter, with their rows.

Up to four machines, every subset is looked at, and predicted unless a bound in closed form excludes it. Of more, the
one that saves most is added until none saves anything; all machines together are tried too. Machines whose links are
unequal are put in an order in which halos take the faster ones. Rows begin in proportion to the machines' rates; then a
few are moved where that is shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations

from ..bands.plan import halo_bytes
from .machines import Link, Machine, Network
from .predict import (
    DoesNotFit,
    Forward,
    Prediction,
    forward_seconds,
    least_seconds,
    plan_of,
    predict,
    proportional_rows,
)

_EVERY_SUBSET = 4
_MOVES = 6
"""Moves of rows that are tried: a sixteenth of a machine's mean share and, once that helps nothing, half as many."""
_CLOSE = 1.01
"""Rows are not moved where the forward takes at most this times the bound: there is nothing to gain."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """reason: one line, with numbers."""

    machine: Machine
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """prediction: of the chosen machines, in the order of their rows, from the top; the driver's is anywhere in it.

    alone: seconds of the driver's machine alone; None where its memory cannot hold the image.
    """

    prediction: Prediction
    alone: float | None
    left_out: tuple[LeftOut, ...]

    @property
    def machines(self) -> tuple[Machine, ...]:
        return self.prediction.machines

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of tokens of each machine: the shares of the image."""
        return self.prediction.rows

    @property
    def seconds(self) -> float:
        return self.prediction.seconds


def choose(forward: Forward, machines: Sequence[Machine], links: Mapping[tuple[str, str], Link]) -> Choice:
    """machines: the driver's own first. links: see `Network`.

    Raises DoesNotFit, a ValueError, where no machines' memory together holds the image.
    """
    if not machines:
        raise ValueError("no machine was given: give the driver's own first")
    search = _Search(forward, tuple(machines), Network(machines, links))
    driver, *others = range(len(machines))
    alone = search.seconds((driver,))
    best = _best(search, driver, others)
    if search.seconds(best) == float("inf"):
        everyone = (driver, *others)
        search.seconds(everyone)
        raise DoesNotFit(search.problems[everyone])
    chosen = search.order(best)
    rows = _improved(search, chosen)
    prediction = predict(forward, [machines[i] for i in chosen], links, rows)
    left_out = tuple(LeftOut(machines[i], search.reason(best, i, prediction.seconds)) for i in others if i not in best)
    return Choice(prediction, None if alone == float("inf") else alone, left_out)


class _Search:
    """Predictions of subsets, each a tuple of indices in increasing order, with rows in proportion to rates.

    Each is made once, and once for all subsets whose machines and links are alike.
    """

    def __init__(self, forward: Forward, machines: tuple[Machine, ...], network: Network) -> None:
        self.forward, self.machines, self.network = forward, machines, network
        self.problems: dict[tuple[int, ...], str] = {}
        self._found: dict[tuple[object, ...], float] = {}

    def least(self, subset: tuple[int, ...]) -> float:
        """Seconds that a forward takes at least."""
        return least_seconds(self.forward, self.of(self.order(subset)), self.network)

    def seconds(self, subset: tuple[int, ...]) -> float:
        """Of a forward; infinite where it does not fit."""
        if subset in self.problems:
            return float("inf")
        order = self.order(subset)
        alike = self._numbers(order)
        if alike not in self._found:
            try:
                self._found[alike] = self.with_rows(order, self.proportional(order))
            except DoesNotFit as problem:
                self.problems[subset] = str(problem)  # it names machines, so each subset has its own
                return float("inf")
        return self._found[alike]

    def proportional(self, order: Sequence[int]) -> tuple[int, ...]:
        return proportional_rows(self.forward, self.of(order))

    def with_rows(self, order: Sequence[int], rows: Sequence[int]) -> float:
        """Seconds; raises DoesNotFit."""
        machines = self.of(order)
        return forward_seconds(self.forward, plan_of(self.forward, machines, rows), machines, self.network)

    def order(self, subset: Iterable[int]) -> tuple[int, ...]:
        """As given, where links are equal; else each goes where the halos that neighbours exchange take least time."""
        order: list[int] = []
        for machine in subset:
            places = [[*order[:at], machine, *order[at:]] for at in range(len(order), -1, -1)]
            order = min(places, key=self._halos)
        return tuple(order)

    def reason(self, best: tuple[int, ...], machine: int, without: float) -> str:
        """Why a machine is not among the best."""
        subset = tuple(sorted((*best, machine)))
        seconds = self.seconds(subset)
        if seconds == float("inf"):
            return self.problems[subset]
        compared = f"{seconds:.3g} s a step with it, {without:.3g} s without"
        if least_seconds(self.forward, self.of(self.order(subset)), None) >= without:
            return f"{self.machines[machine].flops / 1e12:.3g} TFLOP/s: {compared}"
        name = self.machines[machine].name
        slowest = min(best, key=lambda i: self.network.both_ways(name, self.machines[i].name).bytes_per_second)
        other = self.machines[slowest].name
        return f"{self.network.both_ways(name, other)} to {other}: {compared}"

    def of(self, order: Sequence[int]) -> list[Machine]:
        return [self.machines[i] for i in order]

    def _numbers(self, order: Sequence[int]) -> tuple[object, ...]:
        """All that a prediction depends on."""
        machines = self.of(order)
        cards = ((each.flops, each.attention, each.memory, self.network.card(each.name)) for each in machines)
        links = (self.network.link(one.name, other.name) for one, other in permutations(machines, 2))
        return (*cards, *links)

    def _halos(self, order: Sequence[int]) -> tuple[float, float]:
        """Seconds of a halo between neighbours: of the slowest, and of all."""
        forward = self.forward
        shape = forward.shape
        size = halo_bytes(forward.image, forward.window, shape.channels, shape.element_size, 1)
        names = [machine.name for machine in self.of(order)]
        times = [self.network.both_ways(a, b).seconds(size) for a, b in pairwise(names)]
        return max(times, default=0.0), sum(times)


def _best(search: _Search, driver: int, others: Sequence[int]) -> tuple[int, ...]:
    """The fastest subset with the driver; of those that are as fast, the smallest."""
    best: tuple[int, ...] = (driver,)
    if len(others) < _EVERY_SUBSET:
        subsets = [(driver, *chosen) for size in range(1, len(others) + 1) for chosen in combinations(others, size)]
        for subset in sorted(subsets, key=lambda each: (search.least(each), len(each))):
            best = _faster(search, best, subset)
        return best
    rest = list(others)
    while rest:
        now = best
        for other in rest:
            best = _faster(search, best, tuple(sorted((*now, other))))
        if best == now:
            break
        rest = [other for other in rest if other not in best]
    return _faster(search, best, (driver, *others))


def _faster(search: _Search, best: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The faster of two subsets; the second one is predicted only where the bound leaves it a chance."""
    known = search.seconds(best)
    if search.least(other) > known:
        return best
    took = search.seconds(other)
    return other if took < known or (took == known != float("inf") and len(other) < len(best)) else best


def _improved(search: _Search, order: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of machines in order: in proportion to their rates, and moved a few times where that is shorter."""
    rows = search.proportional(order)
    seconds, left = search.with_rows(order, rows), _MOVES
    if seconds <= _CLOSE * search.least(tuple(sorted(order))):
        return rows
    step = max(1, search.forward.image.height // (16 * len(order)))
    pairs = [(source, target) for source in range(len(order)) for target in range(len(order)) if source != target]
    while step and pairs and left:
        moved = False
        for source, target in pairs:
            if not left or rows[source] <= step:
                continue
            left -= 1
            tried = list(rows)
            tried[source], tried[target] = tried[source] - step, tried[target] + step
            try:
                took = search.with_rows(order, tried)
            except DoesNotFit:
                continue
            if took < seconds:
                rows, seconds, moved = tuple(tried), took, True
        step = step if moved else step // 2
    return rows
