"""The control channel between a driver and its workers: `Listener` on one side, `connect` on the other.

It is for machines that share a token (`read_token`), over a network that others can reach too:

- Nobody without the token gets in, or gets anything parsed but a greeting of fixed length (`handshake`).
- Nobody without the token can add, change, repeat, leave out or move a message unnoticed (`frames`). A connection that
  is cut off looks like one that was closed: an honest end is a `Bye`.
- It is NOT encrypted. Who can watch the network reads graphs, prompts and file names: use a VPN, such as WireGuard,
  where that matters.
- Who has the token is trusted. All machines have the same one, so it does not tell them apart.

On the driver, and on a worker:

    listener = Listener("10.0.0.1", 8189, token, refused=print)
    channel = listener.accept(timeout=60)

    channel = connect("10.0.0.1", 8189, token, timeout=10)
"""

from __future__ import annotations

import socket

from .connection import Channel, Disconnected
from .frames import MAX_MESSAGE
from .handshake import Keys, Refused, Token, TokenError, handshake, read_token
from .listener import Listener
from .sockets import Deadline, prepare, receive_some, send_all, shown

__all__ = [
    "MAX_MESSAGE",
    "Channel",
    "Disconnected",
    "Listener",
    "Refused",
    "Token",
    "TokenError",
    "connect",
    "read_token",
]


def connect(host: str, port: int, token: Token, timeout: float) -> Channel:
    """A channel to the listener on a host, given by name or address.

    timeout: seconds, once for each address that the name has, and once for the handshake. Raises OSError where nothing
    answers, Refused where the handshake fails.
    """
    if not host:
        raise ValueError("the host is empty: give the name or address of the machine that listens")
    if not 1 <= port <= 65535:
        raise ValueError(f"the port is {port}: give the one that the other machine listens on, 1 to 65535")
    connected = socket.create_connection((host, port), timeout)
    try:
        peer = shown((host, port))
        prepare(connected)
        try:
            return Channel(connected, _keys(connected, token, Deadline(timeout)), peer)
        except TimeoutError as error:
            raise Refused(f"{peer}: no handshake in {timeout:g} s, it is busy or another program") from error
        except OSError as error:
            raise Refused(f"{peer}: the connection was lost during the handshake: {error.strerror}") from error
        except Refused as error:
            raise Refused(f"{peer}: {error}") from None
    except BaseException:
        connected.close()
        raise


def _keys(connected: socket.socket, token: Token, deadline: Deadline) -> Keys:
    shaking = handshake(token, "connector")
    turn = next(shaking)
    while True:
        send_all(connected, turn.send, deadline)
        data = b""
        while len(data) < turn.read:
            some = receive_some(connected, turn.read - len(data), deadline)
            if not some:
                raise Refused("it closed the connection: it has another token or another version of this pack")
            data += some
        try:
            turn = shaking.send(data)
        except StopIteration as end:
            return end.value
