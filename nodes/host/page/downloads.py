"""The routes of the button that downloads weights: the only ones that change anything.

GET /clear_attention/downloads gives the state of each released file. POST /clear_attention/download starts one, POST
/clear_attention/download/cancel ends it; both take {"name": NAME} as JSON and answer with the file's state. A request
that cannot be read is answered with status 400 and {"error": why}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ....clear_core.hub.released import RELEASED, find
from ..downloads import cancel_download, download_payloads, start_download

_ACTIONS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("download", start_download),
    ("download/cancel", cancel_download),
)


def add_download_routes(routes: web.RouteTableDef, prefix: str) -> None:
    """Put the routes on a table, each path below `prefix`."""

    @routes.get(f"{prefix}/downloads")
    async def downloads(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(download_payloads))

    for path, action in _ACTIONS:
        routes.post(f"{prefix}/{path}")(_handler(action))


def _handler(action: Callable[[str], Any]) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        # ComfyUI compares origins only where its own address is the loopback. Another site's page cannot send JSON to
        # any other address either: the browser asks first, and ComfyUI does not allow it.
        if request.content_type != "application/json":
            return _refused(f"the content type is {request.content_type[:60]}; it must be application/json")
        try:
            name = (await request.json())["name"]
        except (ValueError, TypeError, KeyError):
            return _refused('the body must be {"name": NAME}')
        if not isinstance(name, str) or find(name) is None:
            known = ", ".join(released.name for released in RELEASED)
            return _refused(f"{str(name)[:60]!r} is not a released file; known are: {known}")
        return web.json_response(await asyncio.to_thread(action, name))

    return handle


def _refused(why: str) -> web.Response:
    return web.json_response({"error": why}, status=400)
