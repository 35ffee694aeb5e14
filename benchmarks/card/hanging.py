"""Rehearsal: a part that finds something, then hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .scale import Scale
from .supervise import Row


def rows(scale: Scale) -> Iterator[Row]:
    del scale
    yield {"found": "before it hung"}
    time.sleep(3600)
