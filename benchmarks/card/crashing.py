"""Rehearsal: a part that ends as an illegal access ends a process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from .scale import Scale
from .supervise import Row


def rows(scale: Scale) -> Iterator[Row]:
    del scale
    yield {"found": "before it crashed"}
    os.kill(os.getpid(), signal.SIGABRT)
