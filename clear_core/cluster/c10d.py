"""A transport over torch.distributed's own process group: gloo between main memories, on any machine with PyTorch.

The group is made directly, without `init_process_group`, whose state is global to the process. A header goes before
every body, and where nothing is to be sent, one that says so: a rank from which nothing has come for `patience` seconds
is lost. Gloo itself gets twice that time: a wait of its that times out closes the links to all ranks, which would then
seem lost too. It cannot give up a receive that waits, either: threads that wait for a lost rank end then.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .transport import Lost, Receive
from .wire import HEADER_BYTES, Header, Shape, WireError, unpack

PATIENCE = 6.0
_ALIVES = 4  # in the patience of the other side
_CHUNK = 4 * 2**20  # bytes of a send; each that comes is a sign of life, also on a link of 10 Mbit/s
_HEADERS, _BODIES = 1, 2  # tags
_UNDER_WAY = 3  # of the sends, or receives, of one rank
_ENDS = 0.5  # seconds that a thread may take to end


@dataclass(frozen=True, slots=True, eq=False)
class _Posted:
    """computed: the CUDA event after which the tensors hold what is to be sent."""

    header: Header
    tensors: tuple[Tensor, ...]
    computed: Any = None


def new_store(host: str) -> Any:
    """A store of this process, at an address of this machine and a port that its `port` says."""
    distributed: Any = torch.distributed
    waits = timedelta(seconds=2 * PATIENCE)
    return distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=waits)


def joined_store(host: str, port: int) -> Any:
    """The store of another process. Raises RuntimeError where there is none."""
    distributed: Any = torch.distributed
    return distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=2 * PATIENCE))


class C10dTransport:
    """store: of `new_store`, or joined. name: of this group alone. patience: seconds.

    interface: the address of this machine on which gloo listens; "" for the one that the host's name resolves to.
    Making it waits for all ranks, at most twice that time for each way. Raises RuntimeError where they do not come.
    """

    def __init__(
        self, store: Any, name: str, rank: int, size: int, *, patience: float = PATIENCE, interface: str = ""
    ) -> None:
        distributed: Any = torch.distributed
        gloo = distributed.ProcessGroupGloo
        self.rank, self.size = rank, size
        self._patience = patience
        options = gloo._Options()
        options._timeout = self._gloo_patience = timedelta(seconds=2 * patience)
        device = gloo.create_device(hostname=interface) if interface else None
        options._devices = [device or gloo.create_default_device()]
        # What goes down, to higher ranks, and what goes up have sockets of their own: gloo's receiver tells the sender
        # that it is ready, which would be heard only after what it sends itself, and both ways would take turns.
        self._groups: tuple[Any, ...] = tuple(
            gloo(distributed.PrefixStore(f"{name}/{way}", store), rank, size, options) for way in ("down", "up")
        )
        self._queues: dict[int, queue.Queue[_Posted | None]] = {
            other: queue.Queue() for other in range(size) if other != rank
        }
        self._threads: dict[threading.Thread, int] = {}  # and for which rank
        self._working = 0  # of them, those that have not ended
        self._heard = dict.fromkeys(self._queues, 0.0)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._lost: set[int] = set()
        self._closing: set[int] = set()  # those that have said "bye"
        self._receive: Receive | None = None
        self._tell_lost: Lost | None = None
        self.sent = dict.fromkeys(self._queues, 0)
        """Bytes of tensors posted to each rank."""

    def start(self, receive: Receive, lost: Lost) -> None:
        self._receive, self._tell_lost = receive, lost
        self._heard = dict.fromkeys(self._queues, time.monotonic())
        threading.Thread(target=self._watch, name="clear-watch", daemon=True).start()
        for other in self._queues:
            for work, name in ((self._send_all, "send"), (self._receive_all, "receive")):
                thread = threading.Thread(
                    target=self._work, args=(work, other), name=f"clear-{name}-{other}", daemon=True
                )
                self._threads[thread] = other
        self._working = len(self._threads)
        for thread in self._threads:
            thread.start()

    def post(self, rank: int, header: Header, tensors: Sequence[Tensor]) -> None:
        header.pack()  # what cannot be sent is an error of the caller
        computed = None
        if tensors and tensors[0].device.type == "cuda":
            computed = torch.cuda.Event()
            computed.record(torch.cuda.current_stream(tensors[0].device))
        self.sent[rank] += header.nbytes
        self._queues[rank].put(_Posted(header, tuple(tensors), computed))

    def close(self) -> None:
        for messages in self._queues.values():
            messages.put(None)
        for thread, rank in self._threads.items():
            while thread.is_alive() and rank not in self._lost:
                thread.join(0.01)
            thread.join(_ENDS)  # unless it waits for a lost rank
        self._closed.set()
        self._release()

    def _release(self) -> None:
        """Close the sockets, once nothing is to be carried and no thread waits at one: the last to end does it."""
        with self._lock:
            if self._working or not self._closed.is_set():
                return
            groups, self._groups = self._groups, ()  # their sockets are open as long as they are there
        for group in groups:
            group.shutdown()

    def _work(self, work: Callable[[int], None], rank: int) -> None:
        try:
            work(rank)
        finally:
            with self._lock:
                self._working -= 1
            self._release()

    def _watch(self) -> None:
        """Names ranks from which nothing comes, until this one closes."""
        while not self._closed.wait(self._patience / _ALIVES / 2):
            for rank, heard in self._heard.items():
                if time.monotonic() - heard > self._patience:
                    self._lose(rank, f"nothing came from it for {self._patience:g} s")

    def _send_all(self, rank: int) -> None:
        """What is posted for one rank, and signs of life where nothing is."""
        messages, sends = self._queues[rank], _Pipeline(self._gloo_patience)
        try:
            while rank not in self._lost or rank in self._closing:
                try:
                    posted = messages.get(timeout=self._patience / _ALIVES)
                except queue.Empty:
                    posted = _Posted(Header("alive"), ())
                if posted is None:
                    sends.add(self._send(rank, _bytes(Header("bye").pack()), _HEADERS))
                    sends.finish()
                    return
                if rank in self._closing:
                    continue  # it reads nothing but the "bye"
                sends.add(self._send(rank, _bytes(posted.header.pack()), _HEADERS))
                if posted.computed is not None:
                    posted.computed.synchronize()
                for tensor in posted.tensors:
                    for part in _bytes(tensor.detach().contiguous().cpu()).split(_CHUNK):
                        sends.add(self._send(rank, part, _BODIES))
        except RuntimeError as error:
            self._lose(rank, _reason(error))

    def _receive_all(self, rank: int) -> None:
        """What one rank sends, until it says that it ends."""
        assert self._receive is not None
        try:
            data, coming = self._header_from(rank)
            while rank not in self._lost:
                coming.wait(self._gloo_patience)
                self._heard[rank] = time.monotonic()
                header = unpack(data.numpy().tobytes())
                if header.kind == "bye":
                    self._closing.add(rank)
                    self._queues[rank].put(None)  # "bye" is the answer: until then the other side waits, and cannot end
                    self._lose(rank, "it has closed")
                    return
                # The sender of the next one shall not wait to hear that this side is ready.
                data, coming = self._header_from(rank)
                if header.kind != "alive":
                    self._receive(rank, header, self._tensors_from(rank, header.tensors))
        except (RuntimeError, WireError) as error:
            self._lose(rank, _reason(error))

    def _header_from(self, rank: int) -> tuple[Tensor, Any]:
        """Where the next header of a rank will be, and the receive to wait for."""
        data = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        return data, self._recv(rank, data, _HEADERS)

    def _tensors_from(self, rank: int, wanted: Sequence[Shape]) -> tuple[Tensor, ...]:
        receives = _Pipeline(self._gloo_patience, lambda: self._heard.update({rank: time.monotonic()}))
        bodies = [torch.empty(shape.nbytes, dtype=torch.uint8) for shape in wanted]
        for body in bodies:
            for part in body.split(_CHUNK):
                receives.add(self._recv(rank, part, _BODIES))
        receives.finish()
        return tuple(body.view(one.dtype).reshape(one.sides) for body, one in zip(bodies, wanted, strict=True))

    def _send(self, rank: int, data: Tensor, tag: int) -> Any:
        return self._groups[rank < self.rank].send([data], rank, tag) if data.numel() else None

    def _recv(self, rank: int, data: Tensor, tag: int) -> Any:
        return self._groups[rank > self.rank].recv([data], rank, tag) if data.numel() else None

    def _lose(self, rank: int, reason: str) -> None:
        with self._lock:
            if rank in self._lost:
                return
            self._lost.add(rank)
        assert self._tell_lost is not None
        self._tell_lost(rank, reason)


class _Pipeline:
    """Sends or receives of which a few are under way at a time: gloo asks the receiver before it sends, and that answer
    comes while those before still travel. done: called after each."""

    def __init__(self, patience: timedelta, done: Callable[[], None] = lambda: None) -> None:
        self._patience, self._done = patience, done
        self._under_way: deque[Any] = deque()

    def add(self, work: Any) -> None:
        """work: None for nothing to send. Raises RuntimeError where an earlier one has failed."""
        if work is not None:
            self._under_way.append(work)
        while len(self._under_way) > _UNDER_WAY:
            self._wait()

    def finish(self) -> None:
        """Wait for all. Raises RuntimeError where one fails."""
        while self._under_way:
            self._wait()

    def _wait(self) -> None:
        self._under_way.popleft().wait(self._patience)
        self._done()


def _bytes(data: bytes | Tensor) -> Tensor:
    """One dimension of uint8."""
    if isinstance(data, bytes):
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return data.reshape(-1).view(torch.uint8)


def _reason(error: BaseException) -> str:
    """The first sentence of what gloo says, without the line of its source."""
    text = re.sub(r"^\[[^]]*\.cc:\d+\] ", "", str(error).strip())
    return re.split(r"\. |\n", text)[0][:200] or type(error).__name__
