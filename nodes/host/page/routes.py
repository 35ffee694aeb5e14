"""The routes that the page requests, below /clear_attention: GET and small JSON, but for POST /measure and `downloads`.

They are on ComfyUI's own table of routes, so its check of a request's origin covers them too. A request that cannot be
read is answered with status 400 and {"error": why}; values that a node would refuse, with {"refused": why}.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import torch
from aiohttp import web

from ....clear_core.flux import token_grid
from ....clear_core.show.estimate import Subject
from ...options.bands import BandSettings, resolve_bands
from ...options.clear import resolve_settings
from ...options.limits import one_of, within
from ...options.presets import resolve_preset, single_nodes
from ...options.stages import MAX_STAGES, plan_stages
from ...options.target import Target
from ...options.vae import TILINGS
from ..bands.memory import RESERVE
from ..cluster.start import known_workers
from ..files import absent_release, download_folder, weights_files, weights_path
from ..flux_model import model_here
from ..machine import home, machine, used_by_models
from ..model_file import subject_of
from ..own_times import own_times
from ..server import running_server
from ..vae import vae_plan_here
from .downloads import add_download_routes
from .estimate import Asked, Here, estimate_payload
from .measuring import Measuring, Wanted
from .payloads import (
    bands_payload,
    chosen_payload,
    devices_payload,
    named_devices,
    read_bench,
    weights_payload,
    window_payload,
)
from .query import (
    BANDS,
    CLEAR,
    DEVICES,
    LOADED,
    RUN,
    SIZE,
    UPSCALE,
    BadRequest,
    Query,
    applied,
    read_values,
    settings_of,
    size_of,
)
from .upscale import upscale_payload
from .workers import workers_payload

PREFIX = "/clear_attention"
_MOST_STEPS = 10_000
BENCH = "clear_attention_bench.json"
"""In ComfyUI's user folder: the table of this machine, by `python dev.py bench --json`."""


def add_routes() -> None:
    """Put the routes on the running server's table, if there is a server."""
    server = running_server()
    if server is None:
        return
    for name in ROUTES:
        server.routes.get(f"{PREFIX}/{name}")(_handler(name))
    server.routes.post(f"{PREFIX}/measure")(Measuring(server, _wanted).answer)
    add_download_routes(server.routes, PREFIX)


def answer(route: str, query: Query) -> Any:
    """What a route answers, ready for JSON. Raises BadRequest for a query that cannot be read."""
    try:
        return ROUTES[route](query)
    except BadRequest:
        raise
    except ValueError as refusal:
        return {"refused": str(refusal)}


def window(query: Query) -> Any:
    """The attention window over an image and its cost; see `window_payload`."""
    values = read_values(query, SIZE | CLEAR)
    width, height = size_of(values)
    file, inputs = applied(values)
    here = home()
    card = torch.cuda.get_device_name(here) if here.type == "cuda" else None
    bench = read_bench(Path(folder_paths.get_user_directory()) / BENCH, card)
    settings = resolve_settings(file, inputs)
    shown = window_payload(settings, width, height, bench)
    return shown | chosen_payload(settings, inputs, file, token_grid(width, height))


def bands(query: Query) -> Any:
    """How an image would be cut here; see `bands_payload`."""
    values = read_values(query, SIZE | CLEAR | BANDS | LOADED)
    width, height = size_of(values)
    clear, settings = settings_of(values), resolve_bands(values["devices"], values["bands"], "exact")
    found = machine([device.name for device in settings.devices])
    if values["model"]:  # when the bands are chosen, its weights lie on the device and other models need not
        weights, used = _subject(values).size, used_by_models()
        found = [replace(device, free=device.free + used.get(device.name, 0) - weights) for device in found]
    return bands_payload(clear, settings, width, height, found, model_here(home()).shape)


def preset(query: Query) -> Any:
    """The nodes that a preset of CLEAR 4K / 8K stands for; see `single_nodes`."""
    values = read_values(query, SIZE | DEVICES | {"preset": (str, None)})
    return {"nodes": single_nodes(values["preset"], values["devices"], *size_of(values))}


def upscale(query: Query) -> Any:
    """The stages of an upscale and what each takes; see `upscale_payload`."""
    values = read_values(query, SIZE | CLEAR | BANDS | UPSCALE)
    width, height = size_of(values)
    clear, settings = settings_of(values), resolve_bands(values["devices"], values["bands"], "exact")
    within("stages", values["stages"], 0, MAX_STAGES)
    one_of("vae_tiling", values["vae_tiling"], TILINGS)
    target = Target(*(values[name] for name in ("target_megapixels", "size_by", "long_side", "scale")))
    stages = plan_stages(width, height, target.megapixels_of(width, height), values["stages"])
    found = machine([device.name for device in settings.devices])
    vae = partial(vae_plan_here, tiling=values["vae_tiling"])
    return upscale_payload((width, height), stages, clear, settings, found, model_here(home()).shape, vae)


def devices(query: Query) -> Any:
    """The devices of this machine and the one that each entry of a `devices` text names; see `devices_payload`."""
    entries = named_devices(read_values(query, DEVICES)["devices"])
    return devices_payload(entries, machine([device for _, device in entries]))


def weights(query: Query) -> Any:
    """The weights files; see `weights_payload`."""
    read_values(query, {})
    here = [name for name in weights_files() if absent_release(name) is None]
    return weights_payload({name: weights_path(name).stat().st_size for name in here})


def estimate(query: Query) -> Any:
    """What a run would take; see `estimate_payload`. banded: whether it runs in bands, and `bands` counts."""
    values = read_values(query, SIZE | CLEAR | BANDS | RUN)
    width, height = size_of(values)
    if not 0 <= values["steps"] <= _MOST_STEPS:
        raise BadRequest(f"steps is {values['steps']}; allowed is 0 to {_MOST_STEPS}")
    file, inputs = applied(values)
    clear, subject = resolve_settings(file, inputs), _subject(values)
    bands = resolve_bands(values["devices"], values["bands"], "exact") if values["banded"] else None
    if values["preset"] and bands is not None and not bands.bands:
        bands = resolve_preset(values["preset"], values["devices"])[1]
    absent = absent_release(file.name) if file else None
    patches = weights_path(file.name).stat().st_size if file and absent is None else 0
    asked = Asked(
        clear,
        bands,
        width,
        height,
        values["steps"],
        subject,
        download=absent.size if absent else 0,
        patches=absent.size if absent else patches,
    )
    return estimate_payload(asked, _here(bands), own_times(subject, clear.backend))


def machines(query: Query) -> Any:
    """The other machines that have joined at a node's `machines`; see `workers_payload`."""
    return workers_payload(known_workers(read_values(query, {"machines": (str, None)})["machines"]))


ROUTES: Mapping[str, Callable[[Query], Any]] = {
    "window": window,
    "bands": bands,
    "preset": preset,
    "devices": devices,
    "weights": weights,
    "upscale": upscale,
    "estimate": estimate,
    "machines": machines,
}


def _handler(route: str) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        try:
            if len(request.query) != len(set(request.query)):
                raise BadRequest("an argument is given twice")
            # In a thread: a large image takes some tenths of a second, and the server's own loop must not wait.
            return web.json_response(await asyncio.to_thread(answer, route, request.query))
        except BadRequest as problem:
            return web.json_response({"error": str(problem)}, status=400)

    return handle


def _subject(values: Mapping[str, Any]) -> Subject:
    """The model that the loader in the graph would load."""
    return subject_of(model_here(home()), values["folder"], values["model"], values["dtype"])


def _wanted(query: Query) -> Wanted:
    """What `Measure now` is to measure. Raises BadRequest or ValueError."""
    values = read_values(query, CLEAR | LOADED)
    clear = settings_of(values)
    return Wanted(_subject(values), clear.backend, clear.window)


def _here(bands: BandSettings | None) -> Here:
    found = machine([device.name for device in bands.devices] if bands else ())
    used = used_by_models()
    return Here(
        [device.name for device in found],
        {
            device.name: device.free + used.get(device.name, 0) - (0 if device.kind == "cpu" else RESERVE)
            for device in found
        },
        {device.name: device.free for device in found},
        {device.name: device.total for device in found},
        shutil.disk_usage(download_folder()).free,
    )
