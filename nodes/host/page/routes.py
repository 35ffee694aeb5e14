"""What the page asks the server: /clear_attention/window, /bands, /devices and /weights. All GET, all small JSON.

They lie on ComfyUI's own table of routes, so that its checks of a request's origin hold for them too. A request that
cannot be read is answered with 400 and {"error": why}; values that a node would refuse, with {"refused": its words}.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from aiohttp import web

from ....clear_core.weights import ClearWeights, Variant, parse_weights, read_header, variant_from_name
from ...options.bands import resolve_bands
from ...options.clear import ClearSettings, resolve_settings
from ...options.stages import LARGEST_SIDE
from ..files import absent_release, weights_files, weights_path
from .payloads import Device, band_facts, read_bench, weights_facts, window_facts

PREFIX = "/clear_attention"
BENCH = "clear_attention_bench.json"
"""In ComfyUI's user folder: the table of this machine, by `python dev.py bench --json`."""

Query = Mapping[str, str]
_Kind = type[int] | type[float] | type[str]

# Names and defaults are those of the nodes' widgets; width and height have none.
_SIZE: dict[str, tuple[_Kind, Any]] = {"width": (int, None), "height": (int, None)}
_CLEAR: dict[str, tuple[_Kind, Any]] = {
    "weights": (str, ""),
    "radius": (int, 0),
    "down_factor": (int, 0),
    "backend": (str, "auto"),
    "start_percent": (float, 0.0),
    "end_percent": (float, 1.0),
    "blocks": (str, "all"),
}
_BANDS: dict[str, tuple[_Kind, Any]] = {"devices": (str, "auto"), "bands": (int, 0)}
_LONGEST = 2000  # characters of one value


def add_routes() -> None:
    """Put the routes on the running server's table, where there is one."""
    # Where ComfyUI runs without its server, importing it would start half of one.
    module = sys.modules.get("server")
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is None:
        return
    for name, answer in (("window", window), ("bands", bands), ("devices", devices), ("weights", weights)):
        server.routes.get(f"{PREFIX}/{name}")(_handler(answer))


def window(query: Query) -> Any:
    """The window over an image and its cost; see `window_facts`."""
    values = _values(query, _SIZE | _CLEAR)
    width, height = _size(values)
    try:
        settings = _settings(values)
    except ValueError as refusal:
        return {"refused": str(refusal)}
    home = comfy.model_management.get_torch_device()
    card = torch.cuda.get_device_name(home) if home.type == "cuda" else None
    bench = read_bench(Path(folder_paths.get_user_directory()) / BENCH, card)
    return window_facts(settings, width, height, bench)


def bands(query: Query) -> Any:
    """How an image would be cut here; see `band_facts`."""
    values = _values(query, _SIZE | _CLEAR | _BANDS)
    width, height = _size(values)
    try:
        clear, settings = _settings(values), resolve_bands(values["devices"], values["bands"], "exact")
    except ValueError as refusal:
        return {"refused": str(refusal)}
    return band_facts(clear, settings, width, height, machine())


def devices(query: Query) -> Any:
    """The devices of this machine, the one that ComfyUI computes on first, with free and total bytes."""
    _values(query, {})
    return [{"name": d.name, "title": d.title, "free": d.free, "total": d.total} for d in machine()]


def weights(query: Query) -> Any:
    """The weights files; see `weights_facts`."""
    _values(query, {})
    here = [name for name in weights_files() if absent_release(name) is None]
    return weights_facts({name: weights_path(name).stat().st_size for name in here})


def machine() -> list[Device]:
    """What ComfyUI can compute on, its own device first."""
    home = torch.device(comfy.model_management.get_torch_device())
    counted = {"cuda": torch.cuda.device_count, "xpu": lambda: torch.xpu.device_count()}
    count = counted[home.type]() if home.type in counted else 1
    first = home.index or 0
    found = [torch.device(home.type, i) for i in (first, *(i for i in range(count) if i != first))]
    if home.type == "cpu":
        found = [home]
    else:
        found.append(torch.device("cpu"))
    return [_device(device) for device in found]


def _device(device: torch.device) -> Device:
    free: Any = comfy.model_management.get_free_memory(device)
    total: Any = comfy.model_management.get_total_memory(device)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Device(str(device), title, int(free), int(total))


def _handler(answer: Callable[[Query], Any]) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        try:
            if len(request.query) != len(set(request.query)):
                raise ValueError("an argument is given twice")
            # In a thread: a large image takes some tenths of a second, and the server's own loop must not wait.
            return web.json_response(await asyncio.to_thread(answer, request.query))
        except ValueError as problem:
            return web.json_response({"error": str(problem)}, status=400)

    return handle


def _values(query: Query, known: Mapping[str, tuple[_Kind, Any]]) -> dict[str, Any]:
    """Every known argument, read, or its default. Raises ValueError for one that is unknown, missing or unreadable."""
    for name in query:
        if name not in known:
            raise ValueError(f"unknown argument {name[:40]!r}; known are: {', '.join(known) or 'none'}")
    found = {}
    for name, (kind, default) in known.items():
        text = query.get(name)
        if text is None and default is None:
            raise ValueError(f"{name} is missing")
        if text is not None and len(text) > _LONGEST:
            raise ValueError(f"{name} is longer than {_LONGEST} characters")
        try:
            found[name] = default if text is None else kind(text)
        except ValueError:
            raise ValueError(f"{name} is {str(text)[:40]!r}, which is no number") from None
    return found


def _size(values: Mapping[str, Any]) -> tuple[int, int]:
    for name in ("width", "height"):
        if not 1 <= values[name] <= LARGEST_SIDE:
            raise ValueError(f"{name} is {values[name]}; allowed is 1 to {LARGEST_SIDE} pixels")
    return values["width"], values["height"]


def _variant(name: str) -> Variant:
    """By the file's name, which tells that of a released one before it is here; else by its header."""
    known = variant_from_name(name)
    if known is None:
        known = parse_weights(*read_header(weights_path(name)), name).variant
    return known


def _settings(values: Mapping[str, Any]) -> ClearSettings:
    """As Apply CLEAR Attention would resolve them."""
    name = values["weights"]
    file = ClearWeights(name, _variant(name), {}, {}, (0, 0)) if name else None
    return resolve_settings(
        file,
        radius=values["radius"],
        down_factor=values["down_factor"],
        strength=1.0,
        backend=values["backend"],
        ntk_factor=1.0,
        proportional_attention=False,
        start_percent=values["start_percent"],
        end_percent=values["end_percent"],
        references="window",
        blocks=values["blocks"],
    )
