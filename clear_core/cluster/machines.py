"""Machines and the links between them, as measured: what a prediction starts from.

Every machine is one lane. A link carries one copy at a time in each direction, both directions at once. All links of
a machine share its network card, which sends and receives at its own rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True)
class Machine:
    """flops: of matrix products, a second. attention: share of it that attention reaches, above 0 to 1.

    memory: bytes of its device beside the model's weights; None where it is not to be looked at. network: bytes a
    second that its network card sends, and as many that it receives; None: as many as its fastest link carries.
    """

    name: str
    flops: float
    attention: float
    memory: int | None = None
    network: float | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.flops) and self.flops > 0):
            raise ValueError(f"{self.name} needs a rate above 0 operations a second, got {self.flops}")
        if not 0 < self.attention <= 1:
            raise ValueError(
                f"attention reaches a share above 0 and up to 1 of {self.name}'s rate, got {self.attention}"
            )
        if self.memory is not None and self.memory < 0:
            raise ValueError(f"{self.name} cannot have less than 0 bytes of memory, got {self.memory}")
        if self.network is not None and not self.network > 0:
            raise ValueError(f"{self.name}'s network card needs a rate above 0 bytes a second, got {self.network}")


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a link. latency_seconds: from when a copy has been sent until it is there."""

    bytes_per_second: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_second > 0:
            raise ValueError(f"a link needs a rate above 0 bytes a second, got {self.bytes_per_second}")
        if not (isfinite(self.latency_seconds) and self.latency_seconds >= 0):
            raise ValueError(f"a link's latency must be 0 seconds or more, got {self.latency_seconds}")

    def __str__(self) -> str:
        return f"{self.bytes_per_second * 8 / 1e9:.3g} Gbit/s"

    def seconds(self, size: int) -> float:
        """Of a copy of `size` bytes that has the link to itself."""
        return size / self.bytes_per_second + self.latency_seconds


class Network:
    """The links between some machines, by their names."""

    def __init__(self, machines: Sequence[Machine], links: Mapping[tuple[str, str], Link]) -> None:
        """links: from one machine to another; where only one direction is given, the other is like it.

        Raises ValueError where two machines have the same name, or no link was given between two.
        """
        names = [machine.name for machine in machines]
        if len(set(names)) < len(names):
            raise ValueError(f"machines need different names, got {', '.join(names)}")
        self._links: dict[tuple[str, str], Link] = {}
        for source in names:
            for target in names:
                if source == target:
                    continue
                link = links.get((source, target), links.get((target, source)))
                if link is None:
                    raise ValueError(
                        f"no link between {source} and {target} was given: measure it, or leave out one of the two"
                    )
                self._links[source, target] = link
        self._cards = {machine.name: self._card(machine) for machine in machines}

    def link(self, source: str, target: str) -> Link:
        """As the link is, whatever the network cards at its ends can do."""
        return self._links[source, target]

    def card(self, name: str) -> float:
        """Bytes a second that a machine's network card sends, and receives."""
        return self._cards[name]

    def both_ways(self, one: str, other: str) -> Link:
        """The slower direction of a link, no faster than the network cards at its ends."""
        there, back = self._links[one, other], self._links[other, one]
        rates = there.bytes_per_second, back.bytes_per_second, self._cards[one], self._cards[other]
        return Link(min(rates), max(there.latency_seconds, back.latency_seconds))

    def _card(self, machine: Machine) -> float:
        if machine.network is not None:
            return machine.network
        rates = (link.bytes_per_second for ends, link in self._links.items() if machine.name in ends)
        return max(rates, default=float("inf"))
