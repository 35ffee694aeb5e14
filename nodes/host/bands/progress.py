"""How far each band of a forward is, for the page: messages "clear_attention.bands", a few times a second and when a
forward ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ....clear_core.bands.plan import BandPlan
from ..server import running_server

EVENT = "clear_attention.bands"
_EVERY = 0.2  # seconds

BlockDone = Callable[[int], None]
"""Called with a band's number whenever it has finished a block."""


class Throttle:
    """Lets one call through every 0.2 s."""

    def __init__(self) -> None:
        self._last = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < _EVERY:
            return False
        self._last = now
        return True


class ForwardProgress:
    """Blocks that each band of a forward has done. report: gets these numbers whenever the throttle lets it, and at the
    end."""

    def __init__(self, bands: int, report: Callable[[Sequence[int]], None], throttle: Throttle) -> None:
        self._done = [0] * bands  # a band's own worker alone counts it up
        self._report, self._throttle = report, throttle

    def block_done(self, band: int) -> None:
        self._done[band] += 1
        self._changed()

    def others_done(self, first: int, blocks: Sequence[int]) -> None:
        """Another machine's report of its bands, from `first` on; what is beyond the last band is ignored."""
        for band, count in enumerate(blocks[: max(0, len(self._done) - first)], first):
            self._done[band] = count
        self._changed()

    def finished(self) -> None:
        """All bands are done. Reported in any case: another machine's last report can come after its rows, or not be
        due."""
        # A band of this machine has counted all blocks.
        self._done = [max(self._done)] * len(self._done)
        self._report(tuple(self._done))

    def _changed(self) -> None:
        if self._throttle.due():
            self._report(tuple(self._done))


StartProgress = Callable[[int, BandPlan, Sequence[str]], ForwardProgress]
"""Called when a forward begins, with its number of blocks, its plan, and the other machine that has each lane: "" for
one of this machine, () where all are."""


def band_progress(node_id: str | None) -> StartProgress | None:
    """Sends the progress of a node's forwards to the page; None where there is no page."""
    server = running_server()
    if server is None or node_id is None:
        return None
    throttle = Throttle()  # over all forwards

    def start(blocks: int, plan: BandPlan, machines: Sequence[str]) -> ForwardProgress:
        about = {
            "node": node_id,
            "grid": [plan.image.height, plan.image.width],
            "bands": [[rows.start, rows.stop, lane] for rows, lane in zip(plan.bands, plan.lanes, strict=True)],
            "blocks": blocks,
            "machines": list(machines),
        }

        def report(done: Sequence[int]) -> None:
            message: dict[str, Any] = {**about, "done": list(done)}
            server.send_sync(EVENT, message, server.client_id)

        return ForwardProgress(len(plan.bands), report, throttle)

    return start
