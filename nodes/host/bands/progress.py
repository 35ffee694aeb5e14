"""How far each band of a forward is, for the page: a message "clear_attention.bands" a few times a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ....clear_core.bands.plan import BandPlan

EVENT = "clear_attention.bands"
_EVERY = 0.2  # seconds

Moved = Callable[[int], None]
"""Told a band's number whenever it has finished a block."""
Begin = Callable[[BandPlan, int], Moved]
"""A forward begins: its plan and its number of blocks."""


def band_progress(node_id: str | None) -> Begin | None:
    """Sends the progress of a node's forwards; None where nobody looks on."""
    module = sys.modules.get("server")
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is None or node_id is None:
        return None
    sent = [0.0]  # when the last message went, over all forwards

    def begin(plan: BandPlan, blocks: int) -> Moved:
        done = [0] * len(plan.bands)  # a band's own worker alone counts it up
        about = {
            "node": node_id,
            "grid": [plan.image.height, plan.image.width],
            "bands": [[rows.start, rows.stop, lane] for rows, lane in zip(plan.bands, plan.lanes, strict=True)],
            "blocks": blocks,
        }

        def moved(band: int) -> None:
            done[band] += 1
            now = time.monotonic()
            if now - sent[0] >= _EVERY:
                sent[0] = now
                message: dict[str, Any] = {**about, "done": list(done)}
                server.send_sync(EVENT, message, server.client_id)

        return moved

    return begin
