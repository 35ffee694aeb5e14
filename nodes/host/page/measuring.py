"""POST /clear_attention/measure: runs `Measure now` in a thread, one at a time, and only while no prompt does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ....clear_core.show.estimate import Subject
from ....clear_core.window import Window
from ..measure import Stopped, measure
from ..own_times import keep_times
from ..retry import is_out_of_memory
from .query import BadRequest

EVENT = "clear_attention.measure"
"""The message to the page: {"share": of the measurement that is done}."""

_EVERY = 0.2  # seconds between two messages
_BUSY = "A prompt is running or queued. Measure when the queue is empty: both would be slower."
_TWICE = "A measurement is running already."
_STARTED = "A prompt was queued during the measurement, which was stopped. Measure when the queue is empty."
_MEMORY = "There is not enough free memory to measure. Unload models (the button at the top of the page) and try again."

_log = logging.getLogger("clear-attention")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. backend, window: of Apply CLEAR Attention."""

    subject: Subject
    backend: str
    window: Window


class Measuring:
    """The route. An answer is {"measured": true}, {"refused": why} or, with status 400, {"error": why}."""

    def __init__(self, server: Any, wanted_of: Callable[[Mapping[str, str]], Wanted]) -> None:
        """server: ComfyUI's. wanted_of: reads a query; raises BadRequest, or ValueError as a node would."""
        self._server, self._wanted_of = server, wanted_of
        self._running = False

    async def answer(self, request: web.Request) -> web.Response:
        try:
            wanted = await asyncio.to_thread(self._wanted_of, request.query)
        except BadRequest as problem:
            return web.json_response({"error": str(problem)}, status=400)
        except ValueError as refusal:
            return web.json_response({"refused": str(refusal)})
        why = _TWICE if self._running else self._busy() and _BUSY
        if why:
            return web.json_response({"refused": why})
        self._running = True  # in the server's own thread, so that no second request comes between
        try:
            await asyncio.to_thread(self._measure, wanted)
        except Stopped as why_not:
            return web.json_response({"refused": str(why_not)})
        except Exception as error:
            _log.exception("CLEAR: the measurement failed")
            text = _MEMORY if is_out_of_memory(error) else f"The measurement failed: {error}"
            return web.json_response({"refused": text})
        finally:
            self._running = False
        return web.json_response({"measured": True})

    def _busy(self) -> bool:
        return self._server.prompt_queue.get_tasks_remaining() > 0

    def _measure(self, wanted: Wanted) -> None:
        sent = [0.0]

        def progress(share: float) -> None:
            now = time.monotonic()
            if now - sent[0] >= _EVERY:
                sent[0] = now
                self._server.send_sync(EVENT, {"share": share})

        found = measure(
            wanted.subject.model,
            wanted.backend,
            wanted.window,
            progress,
            lambda: _STARTED if self._busy() else None,
        )
        keep_times(wanted.subject, wanted.backend, found)
