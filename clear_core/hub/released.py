"""The weights files that the authors of CLEAR published."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "Huage001/CLEAR"

# A branch, because no commit hash is known for certain. So a file is verified against the size and SHA-256 that the hub
# gives for it, and against a digest of this table where there is one.
REVISION = "main"

_ENDPOINT = "https://huggingface.co"
_ABOUT = 3_587_300_000  # 1.8 billion values of two bytes


@dataclass(frozen=True, slots=True)
class Released:
    """One file. size: approximate bytes, until the hub gives the exact number. sha256: None where unknown."""

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
"""The modification time of downloaded files, 2024-12-20 in Unix time. It tells them from a user's own files."""


def find(name: str) -> Released | None:
    """The released file of that name."""
    return next((released for released in RELEASED if released.name == name), None)


def part_file(folder: Path, name: str, sha256: str) -> Path:
    """Where an incomplete download of a file lies: one of another content is not continued."""
    return folder / f"{name}.{sha256[:12]}.part"


def part_files(folder: Path, name: str) -> list[Path]:
    """The incomplete downloads of a file."""
    return list(folder.glob(f"{name}.{'?' * 12}.part"))


def address(name: str, endpoint: str | None = None) -> str:
    """The URL of a released file. endpoint: as for `hub_url`."""
    return hub_url(REPOSITORY, REVISION, name, endpoint)


def hub_url(repository: str, revision: str, name: str, endpoint: str | None = None) -> str:
    """The URL of a file on the hub. endpoint: None for HF_ENDPOINT, or the hub where that is not set."""
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or _ENDPOINT
    return f"{endpoint.rstrip('/')}/{repository}/resolve/{revision}/{name}"


def size_text(size: float) -> str:
    """Bytes as users read them: "3.6 GB", "850 MB", "62 kB"."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}" if size < 10 * bytes_ else f"{size / bytes_:.0f} {unit}"
    return f"{size / 1e3:.0f} kB"
