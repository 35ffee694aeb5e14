"""Messages between processes, whatever carries them, and their way to the forward that they belong to.

A `Transport` carries headers and tensors from one rank to another: `local` within one process, `c10d` over
torch.distributed. A `Router` gives what has come to the forward whose number is in the header, also where that forward
has not begun here, and forgets what is left of older ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..bands.remote import Deliver, Fail, PeerError
from ..bands.schedule import Copy
from .wire import Header, Kind, shapes

Tensors = tuple[Tensor, ...]
Receive = Callable[[int, Header, Tensors], None]
"""(rank, header, tensors): a message has come. Called by one thread for each rank, in the order of sending."""
Lost = Callable[[int, str], None]
"""(rank, reason): nothing will come from a rank any more. Called once."""

_TEXT_BYTES = 2000


class Transport(Protocol):
    """Between the ranks of one group. Tensors arrive in main memory."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def start(self, receive: Receive, lost: Lost) -> None:
        """Carry messages from here on."""
        ...

    def post(self, rank: int, header: Header, tensors: Sequence[Tensor]) -> None:
        """Send to another rank. Does not wait; messages to one rank arrive in this order. To a lost rank: nothing."""
        ...

    def close(self) -> None:
        """Send what has been posted, and end. No thread is left behind."""
        ...


@dataclass(eq=False)
class _Inbox:
    """Of one forward. copies: that came before it was opened. messages: those for `ForwardLinks.receive`."""

    deliver: Deliver | None = None
    fail: Fail | None = None
    problem: PeerError | None = None
    copies: list[tuple[int, Copy, Tensors]] = field(default_factory=list)
    messages: dict[tuple[int, Kind, int], Tensors] = field(default_factory=dict)


class Router:
    """The messages of one transport, by forward. Forwards have growing numbers, and one at a time is open here."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._changed = threading.Condition()
        self._inboxes: dict[int, _Inbox] = {}
        self._over = -1  # all forwards up to this one are
        self._lost: dict[int, PeerError] = {}
        transport.start(self._received, self._peer_lost)

    @property
    def lost(self) -> dict[int, PeerError]:
        """Ranks that are gone, and why."""
        with self._changed:
            return dict(self._lost)

    def forward(self, number: int, ranks: Sequence[int]) -> ForwardLinks:
        """The links of a forward. ranks: of the process that has each lane, in order."""
        return ForwardLinks(self, number, tuple(ranks))

    def close(self) -> None:
        self.transport.close()

    def _received(self, rank: int, header: Header, tensors: Tensors) -> None:
        with self._changed:
            if header.forward <= self._over:
                return  # of a forward that has failed here
            inbox = self._inboxes.setdefault(header.forward, _Inbox())
            if header.kind == "failed":
                reason = bytes(tensors[0].tolist()).decode("utf-8", "replace") if tensors else "no reason given"
                self._fail(inbox, PeerError(f"rank {rank}: {reason}"))
            elif header.copy is None:
                inbox.messages[rank, header.kind, header.number] = tensors
            elif inbox.deliver is None:
                inbox.copies.append((header.layer, header.copy, tensors))
            else:
                inbox.deliver(header.layer, header.copy, tensors)
            self._changed.notify_all()

    def _peer_lost(self, rank: int, reason: str) -> None:
        with self._changed:
            self._lost[rank] = PeerError(f"rank {rank} is lost: {reason}")
            for inbox in self._inboxes.values():
                self._fail(inbox, self._lost[rank])
            self._changed.notify_all()

    def _fail(self, inbox: _Inbox, problem: PeerError) -> None:
        if inbox.problem is None:
            inbox.problem = problem
            if inbox.fail is not None:
                inbox.fail(problem)

    def _opened(self, number: int, ranks: Sequence[int], deliver: Deliver, fail: Fail) -> None:
        with self._changed:
            inbox = self._inboxes.setdefault(number, _Inbox())
            inbox.deliver, inbox.fail = deliver, fail
            for layer, copy, tensors in inbox.copies:
                deliver(layer, copy, tensors)
            inbox.copies.clear()
            inbox.problem = self._problem(inbox, ranks)
            if inbox.problem is not None:
                fail(inbox.problem)

    def _problem(self, inbox: _Inbox, ranks: Sequence[int]) -> PeerError | None:
        """Why a forward with some ranks cannot go on; None where it can. Call with `_changed` held."""
        return inbox.problem or next((self._lost[rank] for rank in ranks if rank in self._lost), None)

    def _closed(self, number: int) -> None:
        """No copy of the forward is delivered any more."""
        with self._changed:
            inbox = self._inboxes.get(number)
            if inbox is not None:
                inbox.deliver, inbox.fail = _nowhere, None

    def _ended(self, number: int) -> None:
        with self._changed:
            self._over = max(self._over, number)
            for old in [other for other in self._inboxes if other <= self._over]:
                del self._inboxes[old]

    def _awaited(self, number: int, rank: int, kind: Kind, index: int, ranks: Sequence[int]) -> Tensors:
        with self._changed:
            while True:
                inbox = self._inboxes.setdefault(number, _Inbox())
                found = inbox.messages.pop((rank, kind, index), None)
                if found is not None:
                    return found
                problem = self._problem(inbox, ranks)
                if problem is not None:
                    raise problem
                self._changed.wait()


class ForwardLinks:
    """One forward's way to the lanes of other processes: `bands.remote.Links`, and what goes before and after it."""

    def __init__(self, router: Router, number: int, ranks: tuple[int, ...]) -> None:
        self.number, self.ranks = number, ranks
        self._router, self._transport = router, router.transport
        mine = [lane for lane, rank in enumerate(ranks) if rank == self._transport.rank]
        if not mine or mine != [*range(mine[0], mine[-1] + 1)]:
            raise ValueError(f"rank {self._transport.rank} needs lanes that lie next to each other, got {ranks}")
        self.lanes = range(mine[0], mine[-1] + 1)

    @property
    def others(self) -> tuple[int, ...]:
        """The other ranks of the forward, in order."""
        return tuple(rank for rank in dict.fromkeys(self.ranks) if rank != self._transport.rank)

    def open(self, deliver: Deliver, fail: Fail) -> None:
        self._router._opened(self.number, self.others, deliver, fail)

    def post(self, layer: int, copy: Copy, tensors: Tensors) -> None:
        header = Header("copy", self.number, layer, copy, tensors=shapes(tensors))
        self._transport.post(self.ranks[copy.target], header, tensors)

    def failed(self, problem: BaseException) -> None:
        text = f"{type(problem).__name__}: {problem}".encode()[:_TEXT_BYTES]
        told = torch.tensor(list(text), dtype=torch.uint8)
        for rank in self.others:
            self._transport.post(rank, Header("failed", self.number, tensors=shapes([told])), [told])

    def close(self) -> None:
        self._router._closed(self.number)

    def send(self, rank: int, kind: Kind, index: int, tensors: Tensors) -> None:
        """A message of the forward to another rank. kind: "given" or "output". index: tells messages apart."""
        self._transport.post(rank, Header(kind, self.number, number=index, tensors=shapes(tensors)), tensors)

    def receive(self, rank: int, kind: Kind, index: int) -> Tensors:
        """The message that another rank sends so. Raises PeerError where it cannot come any more."""
        return self._router._awaited(self.number, rank, kind, index, self.others)

    def end(self) -> None:
        """The forward is over: what still comes of it, and of earlier ones, is dropped."""
        self._router._ended(self.number)


def _nowhere(layer: int, copy: Copy, tensors: Tensors) -> None:
    pass
