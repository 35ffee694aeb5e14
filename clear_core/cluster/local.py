"""A transport between the ranks of one process, in threads: what `c10d` is between processes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from torch import Tensor

from .transport import Lost, Receive
from .wire import Header, unpack

_Message = tuple[Header, tuple[Tensor, ...]]
Before = Callable[[int, Header], None]
"""(rank, header): called before a message to a rank is delivered, in the thread that delivers it."""


class LocalGroup:
    """`size` ranks. before: may wait, as a slow link does."""

    def __init__(self, size: int, before: Before = lambda rank, header: None) -> None:
        self.transports = [LocalTransport(self, rank, size) for rank in range(size)]
        self.before = before


class LocalTransport:
    def __init__(self, group: LocalGroup, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._group = group
        self._queues: dict[int, queue.SimpleQueue[_Message | None]] = {
            other: queue.SimpleQueue() for other in range(size) if other != rank
        }
        self._threads: list[threading.Thread] = []
        self._receive: Receive | None = None
        self._lost: Lost | None = None
        self._ready = threading.Event()

    def start(self, receive: Receive, lost: Lost) -> None:
        self._receive, self._lost = receive, lost
        self._ready.set()
        for other in self._queues:
            thread = threading.Thread(target=self._carry, args=(other,), name=f"clear-link-{self.rank}-{other}")
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def post(self, rank: int, header: Header, tensors: Sequence[Tensor]) -> None:
        self._queues[rank].put((unpack(header.pack()), tuple(tensors)))

    def close(self) -> None:
        for messages in self._queues.values():
            messages.put(None)
        for thread in self._threads:
            thread.join()

    def _carry(self, rank: int) -> None:
        """What is posted for one rank, until this one closes."""
        other = self._group.transports[rank]
        other._ready.wait()
        assert other._receive is not None and other._lost is not None
        while (message := self._queues[rank].get()) is not None:
            header, tensors = message
            self._group.before(rank, header)
            other._receive(self.rank, header, tuple(tensor.to("cpu", copy=True) for tensor in tensors))
        other._lost(self.rank, "it has closed")
