"""Waits for the other machines to connect, and lets in those that know the token.

One thread does all handshakes, each as far as its bytes have arrived, so a client that is slow, silent or hostile
keeps nobody waiting. There are few of them at a time and each has a deadline; when one too many comes, the oldest goes.
An honest one needs two round trips, and is not the oldest of many for that long.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from .connection import Channel, Disconnected
from .handshake import Handshake, Keys, Refused, Token, Turn, handshake
from .sockets import Deadline, prepare, shown

_log = logging.getLogger("clear-attention")

_PAUSE = 0.2  # seconds without new clients when the system has no file left for one


@dataclass(slots=True)
class _Client:
    """One that has not proved itself yet. turn: what it has to send now; data: what has arrived of it."""

    socket: socket.socket
    peer: str
    shaking: Handshake
    turn: Turn
    deadline: Deadline
    data: bytes = b""


class Listener:
    """Listens on one address of this machine from the start; `accept` takes the channels in their order.

    address: the address and port it listens on.
    """

    def __init__(
        self,
        interface: str,
        port: int,
        token: Token,
        refused: Callable[[str], None],
        *,
        handshake_seconds: float = 5.0,
        most_pending: int = 64,
        most_waiting: int = 64,
    ) -> None:
        """interface: the IP address of one network card; "0.0.0.0" or "::" for all, never anything else. port: 0 for
        a free one.

        refused: called with one line for each client that is refused, from the listener's thread: it returns at once.
        handshake_seconds: what a client has for all of its handshake. most_pending: handshakes at a time.
        most_waiting: channels that nobody has accepted.

        Raises ValueError for what is no such address or port, OSError where it cannot be listened on.
        """
        self._token, self._refused = token, refused
        self._seconds, self._most_pending, self._most_waiting = handshake_seconds, most_pending, most_waiting
        family, address = _resolved(interface, port)
        self._socket = socket.create_server(address, family=family)
        self._socket.setblocking(False)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._pending: dict[socket.socket, _Client] = {}  # the oldest first
        self._ready: queue.SimpleQueue[Channel | None] = queue.SimpleQueue()  # None: closed
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(woken,), name="clear-listener", daemon=True)
        self._thread.start()

    def accept(self, timeout: float | None) -> Channel:
        """The next machine that has proved itself. timeout: seconds, None for no limit.

        Raises TimeoutError; Disconnected when the listener is closed.
        """
        try:
            channel = self._ready.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"nobody has connected to {shown(self.address)} in {timeout:g} s") from None
        if channel is None:
            self._ready.put(None)  # for the next caller
            raise Disconnected(f"the listener on {shown(self.address)} is closed")
        return channel

    def close(self) -> None:
        """Stop listening, and close the channels that nobody has accepted. Not from `refused`."""
        self._closing.set()
        with suppress(OSError):
            self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()
        with suppress(queue.Empty):
            while (channel := self._ready.get_nowait()) is not None:
                channel.close()
        self._ready.put(None)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, woken: socket.socket) -> None:
        try:
            while not self._closing.is_set():
                oldest = next(iter(self._pending.values()), None)
                for key, _ in self._selector.select(oldest.deadline.left() if oldest else None):
                    if key.fileobj is self._socket:
                        self._take_client()
                    elif client := self._pending.get(key.fileobj):  # pyright: ignore[reportArgumentType]
                        self._advance(client)
                self._drop_late()
        finally:
            for client in self._pending.values():
                client.socket.close()
            self._selector.close()
            self._socket.close()
            woken.close()
            self._ready.put(None)

    def _take_client(self) -> None:
        try:
            connected, address = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        except OSError as error:
            self._report(f"a client could not be let in: {error.strerror}")
            self._closing.wait(_PAUSE)
            return
        peer = shown(address)
        try:
            prepare(connected)
            shaking = handshake(self._token, "listener")
            client = _Client(connected, peer, shaking, next(shaking), Deadline(self._seconds))
            self._selector.register(connected, selectors.EVENT_READ)
        except OSError as error:
            connected.close()
            self._report(f"{peer}: the connection was lost: {error.strerror}")
            return
        self._pending[connected] = client
        if len(self._pending) > self._most_pending:
            oldest = next(iter(self._pending.values()))
            self._refuse(oldest, f"more than {self._most_pending} handshakes at a time, and this was the oldest")

    def _advance(self, client: _Client) -> None:
        """Take what has arrived, but not more than the handshake needs."""
        try:
            data = client.socket.recv(client.turn.read - len(client.data))
            if not data:
                raise Refused("it closed the connection during the handshake")
            client.data += data
            while len(client.data) == client.turn.read:
                client.turn, client.data = client.shaking.send(client.data), b""
                if client.socket.send(client.turn.send) != len(client.turn.send):
                    raise Refused("it does not read")
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._refuse(client, f"the connection was lost during the handshake: {error.strerror}")
        except Refused as error:
            self._refuse(client, str(error))
        except StopIteration as end:
            self._let_in(client, end.value)

    def _let_in(self, client: _Client, keys: Keys) -> None:
        if self._ready.qsize() >= self._most_waiting:
            self._refuse(client, f"{self._most_waiting} others have connected and wait to be accepted")
            return
        self._forget(client)
        self._ready.put(Channel(client.socket, keys, client.peer))

    def _drop_late(self) -> None:
        for client in [*self._pending.values()]:
            if client.deadline.left() != 0:
                break  # the others are younger
            self._refuse(client, f"no handshake in {self._seconds:g} s")

    def _refuse(self, client: _Client, reason: str) -> None:
        self._forget(client)
        client.socket.close()
        self._report(f"{client.peer}: {reason}")

    def _forget(self, client: _Client) -> None:
        del self._pending[client.socket]
        self._selector.unregister(client.socket)

    def _report(self, line: str) -> None:
        try:
            self._refused(line)
        except Exception:
            _log.exception("CLEAR: a refused connection could not be reported (%s)", line)


def _resolved(interface: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Raises ValueError for anything but the address of one network card, or for all exactly "0.0.0.0" or "::"."""
    wanted = 'give the IP address of one network card of this machine, such as "192.168.1.5"'
    if not interface:
        raise ValueError(f"the interface to listen on is empty: {wanted}")
    try:
        address = ipaddress.ip_address(interface)
    except ValueError:
        raise ValueError(f"the interface to listen on is {interface!r}, which is no IP address: {wanted}") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if (mapped or address).is_unspecified and interface not in ("0.0.0.0", "::"):
        raise ValueError(f'{interface!r} means all network cards: {wanted}, or "0.0.0.0" or "::" if you do mean all')
    if not 0 <= port <= 65535:
        raise ValueError(f"the port to listen on is {port}: give one from 1 to 65535, or 0 for a free one")
    family, _, _, _, found = socket.getaddrinfo(interface, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[
        0
    ]
    return family, found  # pyright: ignore[reportReturnType] - with IPv6 a flow and a scope follow
