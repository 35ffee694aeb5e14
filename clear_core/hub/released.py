"""The weights that the authors of CLEAR published."""

from __future__ import annotations

import os
from dataclasses import dataclass

REPOSITORY = "Huage001/CLEAR"

# A branch and not a commit: we know none for certain. So a file is held against the size and the SHA-256 that the hub
# itself gives for it, and against a digest of this table where there is one.
REVISION = "main"

_ENDPOINT = "https://huggingface.co"
_ABOUT = 3_587_300_000  # 1.8 billion values of two bytes


@dataclass(frozen=True, slots=True)
class Released:
    """One file. size: bytes, about; the hub's own answer is what counts. sha256: None where we know none."""

    name: str
    radius: int
    down_factor: int
    size: int = _ABOUT
    sha256: str | None = None


# In the order in which the page lists them: the first is the one to start with.
RELEASED = (
    Released("clear_local_16.safetensors", 16, 1),
    Released("clear_local_8.safetensors", 8, 1),
    Released("clear_local_32.safetensors", 32, 1),
    Released("clear_local_16_down_4.safetensors", 16, 4),
    Released("clear_local_8_down_4.safetensors", 8, 4),
)

DATE = 1_734_652_800
"""The modification time that fetched files get, 2024-12-20 in seconds of Unix time: tells them from files of a
person's own, whose time is that of their making."""


def find(name: str) -> Released | None:
    """The released file of that name."""
    return next((released for released in RELEASED if released.name == name), None)


def address(name: str, endpoint: str | None = None) -> str:
    """Where a browser or the client gets the file. endpoint: None for HF_ENDPOINT, or the hub where that is not set."""
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or _ENDPOINT
    return f"{endpoint.rstrip('/')}/{REPOSITORY}/resolve/{REVISION}/{name}"


def size_text(size: float) -> str:
    """Bytes for a person: "3.6 GB", "850 MB", "62 kB"."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}" if size < 10 * bytes_ else f"{size / bytes_:.0f} {unit}"
    return f"{size / 1e3:.0f} kB"
