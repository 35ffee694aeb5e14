"""What a process holds, seen from outside: open files, threads, memory; and which processes this one has started."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Held:
    """By one process. rss: MiB of its own memory, files that are mapped not counted."""

    files: int
    threads: int
    rss: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def held(pid: int) -> Held:
    folder = Path(f"/proc/{pid}")
    told = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Held(len([*(folder / "fd").iterdir()]), int(told["Threads"]), int(told["RssAnon"].split()[0]) / 1024)


def settled(pid: int, first: Held, seconds: float = 60.0) -> Held:
    """Once a process has no more files and threads than at first, or the time is over."""
    ends = time.monotonic() + seconds
    while True:
        now = held(pid)
        if (now.files <= first.files and now.threads <= first.threads) or time.monotonic() > ends:
            return now
        time.sleep(0.1)


def children() -> int:
    """Of this process, also those that have ended and were not waited for."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue  # it has ended meanwhile
        found += int(parent) == os.getpid()
    return found
