"""What this pack adds to the start of ComfyUI's page, in a real browser: with its script and without it, in turn."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from playwright.sync_api import Browser, Request, Route

from devtools.page import browser as open_browser
from devtools.server import PACK_FOLDER, ComfyServer, only_this_pack

_EXTENSIONS = "**/api/extensions"
_FETCHED = f"""() => {{
    const files = performance.getEntriesByType("resource").filter(({{ name }}) => name.includes("/{PACK_FOLDER}/"))
    const [start, end] = [files.map((file) => file.startTime), files.map((file) => file.responseEnd)]
    return Math.max(...end) - Math.min(...start)
}}"""
_KEEP_ALL = "performance.setResourceTimingBufferSize(10000)"
_READY = "window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow && performance.now()"


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from opening the page to its first workflow being there, medians; pages of each kind."""

    without: float
    with_pack: float
    difference: float  # median of the differences of neighbours in time
    spread: float  # half the distance between their quartiles
    fetching: float  # from asking for the pack's first file to having its last, while the page fetches others too
    requests: int  # that the pack makes
    bytes: int
    pages: int
    importing: float  # seconds that the server took to import the pack, by its own log

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measure(pages: int) -> Start:
    """Open `pages` fresh pages of each kind, a graph without CLEAR nodes in all of them."""
    with tempfile.TemporaryDirectory() as folder:
        options = only_this_pack(Path(folder))
        with ComfyServer(Path(folder) / "server.log", options=options) as server, open_browser() as browser:
            seconds: dict[bool, list[float]] = {False: [], True: []}
            asked: list[tuple[str, int]] = []
            fetching: list[float] = []
            importing = float(re.findall(rf"([\d.]+) seconds: .*{PACK_FOLDER}", server.log)[0])
            for number in range(-1, pages):  # the first of each kind warms up
                for with_pack in (False, True) if number % 2 else (True, False):  # neither is always second
                    taken, fetched, found = _start(browser, server.address, with_pack)
                    if number >= 0:
                        seconds[with_pack].append(taken)
                    if with_pack:
                        asked = found
                        fetching.append(fetched)
    differences = [b - a for a, b in zip(seconds[False], seconds[True], strict=True)]
    low, _, high = statistics.quantiles(differences, n=4)
    return Start(
        statistics.median(seconds[False]),
        statistics.median(seconds[True]),
        statistics.median(differences),
        (high - low) / 2,
        statistics.median(fetching),
        len(asked),
        sum(size for _, size in asked),
        pages,
        importing,
    )


def _start(browser: Browser, address: str, with_pack: bool) -> tuple[float, float, list[tuple[str, int]]]:
    """One start in a browser without a cache: its seconds, those of the pack's files, and these with their bytes."""
    context = browser.new_context()
    context.add_init_script(_KEEP_ALL)
    page = context.new_page()
    ours: list[Request] = []

    def extensions(route: Route) -> None:
        # The same detour for both kinds, so that it does not count.
        listed = route.fetch().json()
        kept = [name for name in listed if with_pack or f"/{PACK_FOLDER}/" not in name]
        route.fulfill(body=json.dumps(kept), content_type="application/json")

    def finished(request: Request) -> None:
        if f"/{PACK_FOLDER}/" in request.url or "clear_attention" in request.url:
            ours.append(request)

    page.route(_EXTENSIONS, extensions)
    page.on("requestfinished", finished)
    page.goto(address)
    milliseconds = page.wait_for_function(_READY, timeout=120_000).json_value()
    fetched = page.evaluate(_FETCHED) if with_pack else 0.0
    files = [(request.url, request.sizes()["responseBodySize"]) for request in ours]
    context.close()
    return milliseconds / 1e3, fetched / 1e3, files
