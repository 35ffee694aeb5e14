"""How the rows of an image are dealt to machines that have joined: by what was measured of them, or equally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .choose import choose
from .machines import Link, Machine
from .measure import ATTENTION_SHARE
from .predict import Forward

THIS = "this machine"


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine that has joined. rates: of its cards, in operations a second. link: to this machine.

    memory: bytes of its cards beside the model's weights; None where that is not to be looked at.
    """

    name: str
    rates: tuple[float, ...]
    link: Link
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Deal:
    """shares: of each offer's cards, in the unit of this machine's own lanes; () for one that is left out.

    left_out: why, by the offer's index. seconds, alone: predicted of a forward, with the others and without; None where
    nothing was predicted.
    """

    shares: tuple[tuple[float, ...], ...]
    left_out: Mapping[int, str]
    seconds: float | None = None
    alone: float | None = None


def equally(offers: Sequence[Offer]) -> Deal:
    """Every card gets what a lane of this machine gets."""
    return Deal(tuple((1.0,) * len(offer.rates) for offer in offers), {})


def by_prediction(work: Forward, own: Sequence[float], shares: Sequence[float], offers: Sequence[Offer]) -> Deal:
    """Those that make a forward shorter, each with the rows that it computes meanwhile.

    own, shares: rates of this machine's lanes, and their shares of its rows. Two others are taken to reach each other
    at the rate of the slower of their links to this machine: nobody has measured it.
    """
    machines = [Machine(THIS, sum(own), ATTENTION_SHARE)]
    links: dict[tuple[str, str], Link] = {}
    for number, offer in enumerate(offers, 1):
        name = f"{offer.name}, worker {number}"  # two may be called the same
        machines.append(Machine(name, sum(offer.rates), ATTENTION_SHARE, offer.memory))
        links[THIS, name] = offer.link
    for one, other in combinations(machines[1:], 2):
        both = links[THIS, one.name], links[THIS, other.name]
        links[one.name, other.name] = min(both, key=lambda link: link.bytes_per_second)
    choice = choose(work, machines, links)
    rows = {machine.name: count for machine, count in zip(choice.machines, choice.rows, strict=True)}
    reasons = {left.machine.name: left.reason for left in choice.left_out}
    unit = sum(shares) / rows[THIS]
    dealt: list[tuple[float, ...]] = []
    left_out: dict[int, str] = {}
    for index, (machine, offer) in enumerate(zip(machines[1:], offers, strict=True)):
        if machine.name in rows:
            dealt.append(tuple(rows[machine.name] * unit * rate / machine.flops for rate in offer.rates))
        else:
            dealt.append(())
            left_out[index] = reasons[machine.name]
    return Deal(tuple(dealt), left_out, choice.seconds, choice.alone)
