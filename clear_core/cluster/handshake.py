"""Both sides prove that they know the token, and get keys for this connection alone.

    connector                                       listener
    magic, version, nonce (44 bytes)         ->
                                             <-     magic, version, nonce (44 bytes)
    proof (32 bytes)                         ->
                                             <-     proof (32 bytes)

Keys and proofs are HKDF (RFC 5869) with SHA-256: the token is the secret, both greetings are the salt, and the purpose
("listener's proof") is the info. So a recorded handshake is of no use against a new nonce, and what one side has sent
is not what it accepts. The connector proves itself first: a stranger who connects gets nothing that depends on the
token. All lengths are fixed, and nothing is parsed beyond them.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

VERSION = 1
_MAGIC = b"CLEARctl"
_GREETING = struct.Struct("!8sI32s")  # magic, version, nonce
_PROOF_BYTES = 32
_SHORTEST = 32  # characters of a token
_LONGEST_FILE = 64 * 1024  # bytes of a token's file

_MAKE_ONE = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'

Role = Literal["connector", "listener"]


class Refused(Exception):
    """The other side is not trusted, or sent what no honest one sends: why, in one line. The connection is closed."""


class TokenError(ValueError):
    """A token that cannot be used, and what to do."""


@dataclass(frozen=True, slots=True)
class Token:
    """What all machines of a cluster know and nobody else: 32 characters at least, without white space around them.

    It should be random: who records a handshake can try short or guessable tokens at leisure. Raises TokenError.
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.strip())
        if len(self.text) < _SHORTEST:
            raise TokenError(f"the token has {len(self.text)} characters and needs {_SHORTEST} at least. {_MAKE_ONE}")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise TokenError(f"the token is not valid text (character {error.start}). {_MAKE_ONE}") from error


def read_token(path: Path) -> Token:
    """The token in a text file (UTF-8), which each machine has a copy of. Raises TokenError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise TokenError(
                f"{path} has more than {_LONGEST_FILE // 1024} KiB: it is no file with a token. {_MAKE_ONE}"
            )
        return Token(content.decode("utf-8-sig"))
    except OSError as error:
        raise TokenError(f"cannot read the token's file {path}: {error.strerror or error}. {_MAKE_ONE}") from error
    except UnicodeDecodeError as error:
        raise TokenError(f"the token's file {path} is not UTF-8 text: save it as UTF-8. {_MAKE_ONE}") from error


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Of one connection and one side: what it sends with, and what it receives with. 32 bytes each."""

    sending: bytes
    receiving: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """What a side does next: send these bytes, then read so many, no more and no fewer."""

    send: bytes
    read: int


Handshake = Generator[Turn, bytes, Keys]


def handshake(token: Token, role: Role) -> Handshake:
    """One side's part, without a socket: yields turns, is sent what was read, returns the keys.

    The last turn may read nothing; it is sent b"". Raises Refused.
    """
    own = _GREETING.pack(_MAGIC, VERSION, os.urandom(32))
    connects = role == "connector"
    # In two parts: a stranger who says less than a greeting and waits is refused by its first bytes.
    magic = yield Turn(own if connects else b"", len(_MAGIC))
    if magic != _MAGIC:
        raise Refused("it does not speak this protocol: another program, or another address or port than meant")
    rest = yield Turn(b"", _GREETING.size - len(_MAGIC))
    _, version, _ = _GREETING.unpack(magic + rest)
    if version != VERSION:
        raise Refused(f"it has version {version} of the protocol, this side version {VERSION}: install the same pack")
    greetings = own + magic + rest if connects else magic + rest + own
    secret = hmac.digest(greetings, token.text.encode(), "sha256")

    def derived(purpose: str) -> bytes:
        return hmac.digest(secret, f"clear control channel: {purpose}".encode() + b"\x01", "sha256")

    if connects:
        proof = yield Turn(derived("connector's proof"), _PROOF_BYTES)
    else:
        proof = yield Turn(own, _PROOF_BYTES)
    if not hmac.compare_digest(proof, derived("listener's proof" if connects else "connector's proof")):
        raise Refused("it has another token")
    if connects:
        return Keys(derived("to the listener"), derived("to the connector"))
    yield Turn(derived("listener's proof"), 0)
    return Keys(derived("to the connector"), derived("to the listener"))
