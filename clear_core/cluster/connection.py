"""An open channel: messages to the other side, and from it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from .frames import Opener, Sealer, body_of, message_of
from .handshake import Keys, Refused
from .sockets import Deadline, receive_some, send_all

_AT_ONCE = 256 * 1024  # bytes


class Disconnected(ConnectionError):
    """The connection is over: closed by one of the sides, or lost. It says which."""


class Channel:
    """Messages in both directions; `Listener` and `connect` make it. Closes itself on every error but a timeout.

    All methods may be called from several threads: one may send while another receives, and `close` ends both.

    >>> with connect("10.0.0.1", 8189, token, timeout=10) as channel:
    ...     channel.send({"type": "Bye"})
    """

    def __init__(self, connected: socket.socket, keys: Keys, peer: str, *, send_seconds: float = 60.0) -> None:
        """connected: a prepared socket, the channel's from now on. peer: the other side's address, for messages.

        send_seconds: how long the other side may leave a message unread before the channel is closed.
        """
        self.peer = peer
        self._socket = connected
        self._sealer, self._opener = Sealer(keys.sending), Opener(keys.receiving)
        self._send_seconds = send_seconds
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._closed = threading.Event()

    def send(self, message: Mapping[str, object]) -> None:
        """Returns when the system has taken all of it. Messages of several threads follow each other, whole.

        Raises ValueError or TypeError for what is no JSON object of at most MAX_MESSAGE bytes, and then nothing was
        sent; Disconnected.
        """
        body = body_of(message)
        try:
            with self._sending:
                self._check_open()
                send_all(self._socket, self._sealer.seal(body), Deadline(self._send_seconds))
        except Disconnected:
            raise
        except OSError as error:
            # A part may have been sent: what follows would be taken for the rest.
            raise self._lost(error, f"{self.peer} has not read what was sent for {self._send_seconds:g} s") from error

    def receive(self, timeout: float | None) -> dict[str, object]:
        """The next message. timeout: seconds, None for no limit.

        Raises TimeoutError, after which the channel is as before; Refused; Disconnected.
        """
        deadline = Deadline(timeout)
        try:
            with self._receiving:
                while True:
                    self._check_open()
                    if (body := self._opener.take()) is not None:
                        return message_of(body)
                    if not (data := receive_some(self._socket, _AT_ONCE, deadline)):
                        self._check_open()
                        place = "" if self._opener.between_messages else " in the middle of a message"
                        raise Disconnected(f"{self.peer} closed the connection{place}")
                    self._opener.feed(data)
        except Refused as error:
            self.close()
            raise Refused(f"{self.peer}: {error}") from None
        except Disconnected:
            self.close()
            raise
        except OSError as error:
            if _is_ours(error) and not self._closed.is_set():
                raise TimeoutError(f"no message from {self.peer} in {timeout:g} s") from None
            raise self._lost(error) from error

    def close(self) -> None:
        """At once; what the other side has not read may be lost. Other threads' calls end with Disconnected."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes them
        # Only when nobody uses it: its number may soon be another file's.
        with self._sending, self._receiving:
            self._socket.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Disconnected(f"the channel to {self.peer} is closed")

    def _lost(self, error: OSError, timeout: str = "") -> Disconnected:
        """Close the channel; the error to raise. timeout: what it means that a deadline of ours has passed."""
        closed_here = self._closed.is_set()
        self.close()
        if closed_here:
            return Disconnected(f"the channel to {self.peer} is closed")
        if _is_ours(error):
            return Disconnected(timeout)
        return Disconnected(f"the connection to {self.peer} is lost: {error.strerror or error}")


def _is_ours(error: OSError) -> bool:
    """Whether a deadline of ours has passed. The network's timeout, of a machine that is gone, has a number."""
    return isinstance(error, TimeoutError) and error.errno is None
