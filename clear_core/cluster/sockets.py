"""Non-blocking sockets with a deadline for each operation.

A socket's own timeout would hold for all threads that use it. Here one may send with one deadline while another
receives with its own.
"""

from __future__ import annotations

import selectors
import socket
import time

# Not the default selector: epoll and kqueue would need a file descriptor for each wait, and select on POSIX cannot
# watch descriptors over 1023.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
_TICK = 0.5  # seconds: not every system ends a wait at once when another thread shuts the socket down


class Deadline:
    """A moment, `seconds` from now; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self._moment = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds; 0 when it has passed."""
        return None if self._moment is None else max(0.0, self._moment - time.monotonic())


def prepare(connected: socket.socket) -> None:
    """Non-blocking; small messages leave at once; a machine that is gone is noticed, if late."""
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def shown(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """An address and its port, as one writes them."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def receive_some(connected: socket.socket, most: int, deadline: Deadline) -> bytes:
    """1 to `most` bytes; none where the other side has closed. Raises TimeoutError, OSError."""
    while True:
        try:
            return connected.recv(most)
        except (BlockingIOError, InterruptedError):
            _wait(connected, selectors.EVENT_READ, deadline)


def send_all(connected: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Raises TimeoutError, OSError; by then a part may have been sent."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[connected.send(rest) :]
        except (BlockingIOError, InterruptedError):
            _wait(connected, selectors.EVENT_WRITE, deadline)


def _wait(connected: socket.socket, event: int, deadline: Deadline) -> None:
    """Until the socket may be ready: the caller tries again. Raises TimeoutError when the deadline has passed."""
    left = deadline.left()
    if left == 0:
        raise TimeoutError
    with _Selector() as selector:
        selector.register(connected, event)
        selector.select(_TICK if left is None else min(left, _TICK))
