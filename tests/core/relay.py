"""A real TCP proxy between two sides of the control channel: records what passes, and changes it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

HANDSHAKE = 76  # bytes that each side sends before its first message
HEAD = 44  # bytes before a message's body

Edit = Callable[[int, bytes], bytes | None]
"""What goes on in the place of a message, given its number and bytes; None: nothing more, and close."""


def unchanged(number: int, frame: bytes) -> bytes:
    return frame


@dataclass
class Way:
    """One direction. passed: all bytes that came in; frames: the messages of them."""

    edit: Edit = unchanged
    handshake: Edit = unchanged
    passed: bytearray = field(default_factory=bytearray)
    frames: list[bytes] = field(default_factory=list)


def read_exactly(source: socket.socket, size: int) -> bytes:
    """Fewer bytes only at the end."""
    data = b""
    while len(data) < size and (some := source.recv(size - len(data))):
        data += some
    return data


class Relay:
    """Takes one connection on `port` and passes it on to `target`, message by message.

    up: towards the listener. down: towards the connector.
    """

    def __init__(self, target: tuple[str, int], *, up: Way | None = None, down: Way | None = None) -> None:
        self.up, self.down = up or Way(), down or Way()
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send_up(self, data: bytes) -> None:
        """Bytes of our own to the listener's side."""
        self._ends[1].sendall(data)

    def send_down(self, data: bytes) -> None:
        """Bytes of our own to the connector's side."""
        self._ends[0].sendall(data)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._server, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()
        for end in (self._server, *self._ends):
            end.close()

    def _run(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError:
            return
        listener = socket.create_connection(self._target)
        self._ends = [client, listener]
        back = threading.Thread(target=self._pass, args=(listener, client, self.down), daemon=True)
        back.start()
        self._pass(client, listener, self.up)
        back.join()

    def _pass(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        with suppress(OSError):
            for number, size in enumerate((44, 32)):  # greeting, proof
                data = read_exactly(source, size)
                way.passed += data
                if (sent := way.handshake(number, data)) is None or not data:
                    break
                target.sendall(sent)
            else:
                self._pass_frames(source, target, way)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass_frames(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        while head := read_exactly(source, HEAD):
            frame = head + read_exactly(source, struct.unpack("!I", head[:4])[0])
            way.passed += frame
            way.frames.append(frame)
            sent = way.edit(len(way.frames) - 1, frame)
            if sent is None:
                return
            target.sendall(sent)
