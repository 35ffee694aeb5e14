"""How far each band of a forward is, for the page: a message "clear_attention.bands" a few times a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ....clear_core.bands.plan import BandPlan
from ..server import running_server

EVENT = "clear_attention.bands"
_EVERY = 0.2  # seconds

BlockDone = Callable[[int], None]
"""Called with a band's number whenever it has finished a block."""
StartProgress = Callable[[BandPlan, int], BlockDone]
"""Called when a forward begins, with its plan and its number of blocks."""


def band_progress(node_id: str | None) -> StartProgress | None:
    """Sends the progress of a node's forwards to the page; None where there is no page."""
    server = running_server()
    if server is None or node_id is None:
        return None
    sent = [0.0]  # when the last message went, over all forwards

    def start(plan: BandPlan, blocks: int) -> BlockDone:
        done = [0] * len(plan.bands)  # a band's own worker alone counts it up
        about = {
            "node": node_id,
            "grid": [plan.image.height, plan.image.width],
            "bands": [[rows.start, rows.stop, lane] for rows, lane in zip(plan.bands, plan.lanes, strict=True)],
            "blocks": blocks,
        }

        def block_done(band: int) -> None:
            done[band] += 1
            now = time.monotonic()
            if now - sent[0] >= _EVERY:
                sent[0] = now
                message: dict[str, Any] = {**about, "done": list(done)}
                server.send_sync(EVENT, message, server.client_id)

        return block_done

    return start
