"""Where other machines join: what `machines` says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):([0-9]{1,5})(\s+all)?")


@dataclass(frozen=True, slots=True)
class JoinAddress:
    """host: a name or address of this machine. port: that it listens on. everyone: all workers take part, with equal
    rows, whatever is predicted."""

    host: str
    port: int
    everyone: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, name: str = "machines") -> JoinAddress | None:
    """ "" is None: this machine alone. Raises ValueError naming what was given and what is allowed."""
    if not text.strip():
        return None
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(
            f"{name} is {text.strip()[:60]!r}; write the address and port of this machine on which others join, such "
            "as 192.168.1.10:8189, or leave it empty to use this machine alone"
        )
    return JoinAddress(match[1].strip("[]"), int(match[2]), everyone=match[3] is not None)
