"""One message as bytes: length of the body, sequence number, HMAC-SHA256 of both and the body, body.

The body is a JSON object in UTF-8. Every direction has a key of its own and counts from 0, so a message that was
repeated, left out, moved, changed or sent back is noticed before its body is parsed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping

from .handshake import Refused

MAX_MESSAGE = 16 * 2**20
"""Bytes of a body."""

_HEAD = struct.Struct("!IQ")  # length of the body, sequence number
_MAC_BYTES = 32
_OVERHEAD = _HEAD.size + _MAC_BYTES
_DIGITS = 20  # of an integer: seeds have 64 bits


def body_of(message: Mapping[str, object]) -> bytes:
    """Raises ValueError or TypeError for what is no JSON, or too much."""
    try:
        body = json.dumps(dict(message), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except RecursionError as error:
        raise ValueError("the message is nested too deeply to be sent") from error
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"the message has {len(body):,} bytes, at most {MAX_MESSAGE:,} can be sent")
    return body


def message_of(body: bytes) -> dict[str, object]:
    """Raises Refused for anything but one JSON object, without repeated names, NaN and endless numbers."""
    try:
        message = json.loads(
            body.decode(), parse_int=_integer, parse_constant=_no_constant, object_pairs_hook=_without_repetition
        )
    except RecursionError:
        raise Refused("it sent JSON that is nested too deeply") from None
    except ValueError:
        raise Refused("it sent a message that is not JSON") from None
    if not isinstance(message, dict):
        raise Refused("it sent JSON that is not an object")
    return message


class Sealer:
    """Frames of one direction, in order. Not thread-safe."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sequence = 0

    def seal(self, body: bytes) -> bytes:
        head = _HEAD.pack(len(body), self._sequence)
        self._sequence += 1
        return b"".join((head, _mac(self._key, head, body), body))


class Opener:
    """The bodies of one direction, in order, from bytes as they arrive. Not thread-safe."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sequence = 0
        self._buffer = bytearray()

    @property
    def between_messages(self) -> bool:
        """Whether no part of a message has arrived that is not complete yet."""
        return not self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> bytes | None:
        """The next body; None where bytes of it are missing. Raises Refused, after which nothing can be read."""
        if len(self._buffer) < _HEAD.size:
            return None
        head = bytes(self._buffer[: _HEAD.size])
        length, sequence = _HEAD.unpack(head)
        # Before the body has arrived: nothing is kept of what will be refused anyway.
        if length > MAX_MESSAGE:
            raise Refused(f"it announced a message of {length:,} bytes, at most {MAX_MESSAGE:,} are allowed")
        if sequence != self._sequence:
            raise Refused(f"message {sequence} came where number {self._sequence} was due: repeated, lost or moved")
        end = _OVERHEAD + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_OVERHEAD:end])
        if not hmac.compare_digest(self._buffer[_HEAD.size : _OVERHEAD], _mac(self._key, head, body)):
            raise Refused("a message was changed on its way: its HMAC is wrong")
        del self._buffer[:end]
        self._sequence += 1
        return body


def _mac(key: bytes, head: bytes, body: bytes) -> bytes:
    mac = hmac.new(key, head, hashlib.sha256)
    mac.update(body)
    return mac.digest()


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _DIGITS:
        raise ValueError("too many digits")  # time grows with their square
    return int(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found
