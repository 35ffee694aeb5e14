"""What goes wrong with one machine of several while all wait for it in a layer, and how it comes back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from core.cluster_net import Net, machine
from core.cluster_rank import PATIENCE
from core.cluster_ranks import Rank

Act = Callable[[Net, Rank], None]
BUSY = 2 * PATIENCE


@dataclass(frozen=True, slots=True)
class Fault:
    """strike: a rank that holds in a layer. back: after the others have gone on without it; a rank for its place.

    said: of what the others say, one at least contains it. None where they wait for the rank and go on with it.
    """

    strike: Act
    back: Callable[[Net, Rank], Rank]
    said: str | None = None
    lost: bool = True
    """Whether the rank is named among those that are lost."""


def _stop(net: Net, rank: Rank) -> None:
    rank.process.send_signal(signal.SIGSTOP)


def _cut(net: Net, rank: Rank) -> None:
    net.cut(rank)


def _kill(net: Net, rank: Rank) -> None:
    rank.process.kill()


def _leave(net: Net, rank: Rank) -> None:
    rank.ask(leave=True)


def _slow(net: Net, rank: Rank) -> None:
    net.slow(rank, "50mbit")
    rank.ask()


def _busy(net: Net, rank: Rank) -> None:
    rank.ask(busy=BUSY)


def _same(net: Net, rank: Rank) -> Rank:
    return rank


def _new(net: Net, rank: Rank) -> Rank:
    """Its process has ended; another one takes its place, not yet plugged in."""
    rank.process.wait()
    rank.closed()
    return machine()


def _awake(net: Net, rank: Rank) -> Rank:
    """It goes on with its forward, and finds itself alone."""
    rank.process.send_signal(signal.SIGCONT)
    rank.ask()
    rank.answer_with("failed")
    return rank


def _joined(net: Net, rank: Rank) -> Rank:
    net.join(rank)
    rank.ask()
    rank.answer_with("failed")
    return rank


def _left(net: Net, rank: Rank) -> Rank:
    rank.answer_with("failed")
    rank.ask(close=True)
    rank.answer_with("closed")
    return rank


def _quick(net: Net, rank: Rank) -> Rank:
    net.quicken(rank)
    return rank


FAULTS = {
    "kill -9": Fault(_kill, _new, "is lost: "),
    "SIGSTOP": Fault(_stop, _awake, f"is lost: nothing came from it for {PATIENCE:g} s"),
    "link down": Fault(_cut, _joined, f"is lost: nothing came from it for {PATIENCE:g} s"),
    "leaves": Fault(_leave, _left, "Leaves: ", lost=False),
    "50 Mbit/s": Fault(_slow, _quick),
    "busy": Fault(_busy, _same),
}
