"""The routes that the page requests, below /clear_attention: GET and small JSON, but for POST /measure and `downloads`.

They are on ComfyUI's own table of routes, so its check of a request's origin covers them too. A request that cannot be
read is answered with status 400 and {"error": why}; values that a node would refuse, with {"refused": why}.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from aiohttp import web

from ....clear_core.flux import token_grid
from ....clear_core.show.estimate import Subject
from ....clear_core.weights import ClearWeights, Variant, parse_weights, read_header, variant_from_name
from ...options.bands import BandSettings, resolve_bands
from ...options.clear import ApplyInputs, ClearSettings, resolve_settings, within
from ...options.lanes import AUTO as AUTO_DEVICES
from ...options.presets import resolve_preset, single_nodes
from ...options.stages import LARGEST_SIDE, MAX_STAGES, plan_stages
from ...options.target import MEGAPIXELS, Target
from ...options.vae import AUTO, TILINGS
from ..bands.memory import RESERVE
from ..files import absent_release, download_folder, weights_files, weights_path
from ..flux_model import model_here
from ..machine import device_name, machine_devices, used_by_models
from ..model_file import subject_of
from ..own_times import own_times
from ..server import running_server
from ..vae import vae_plan_here
from .downloads import add_download_routes
from .estimate import Asked, Here, estimate_payload
from .measuring import BadRequest, Measuring, Wanted
from .payloads import (
    MachineDevice,
    bands_payload,
    chosen_payload,
    devices_payload,
    named_devices,
    read_bench,
    weights_payload,
    window_payload,
)
from .upscale import upscale_payload

PREFIX = "/clear_attention"
BENCH = "clear_attention_bench.json"
"""In ComfyUI's user folder: the table of this machine, by `python dev.py bench --json`."""

Query = Mapping[str, str]
_Kind = type[int] | type[float] | type[str] | type[bool]

# Names and defaults are those of the nodes' widgets; width and height have none.
_SIZE: dict[str, tuple[_Kind, Any]] = {"width": (int, None), "height": (int, None)}
# The widgets of Apply CLEAR Attention on which its picture depends; the page names them alike.
_WIDGETS = (
    *("radius", "down_factor", "backend", "ntk_factor", "proportional_attention"),
    *("start_percent", "end_percent", "blocks"),
)
# preset: of CLEAR 4K / 8K, in place of the others.
_CLEAR: dict[str, tuple[_Kind, Any]] = {
    "weights": (str, ""),
    "preset": (str, ""),
    **{name: (type(getattr(ApplyInputs(), name)), getattr(ApplyInputs(), name)) for name in _WIDGETS},
}
_DEVICES: dict[str, tuple[_Kind, Any]] = {"devices": (str, "auto")}
_BANDS: dict[str, tuple[_Kind, Any]] = {**_DEVICES, "bands": (int, 0)}
_TRUTH = {"true": True, "false": False}  # as JavaScript writes them
_UPSCALE: dict[str, tuple[_Kind, Any]] = {
    "target_megapixels": (float, 16.8),
    "stages": (int, 0),
    "size_by": (str, MEGAPIXELS),
    "long_side": (int, Target.long_side),
    "scale": (float, Target.scale),
    "vae_tiling": (str, AUTO),
}
# What a run loads and does: the loader's folder and file, and the steps of the sampler; 0 for unknown.
_LOADED: dict[str, tuple[_Kind, Any]] = {"folder": (str, "diffusion_models"), "model": (str, ""), "dtype": (str, "")}
_RUN: dict[str, tuple[_Kind, Any]] = {**_LOADED, "steps": (int, 0), "banded": (int, 0)}
_MOST_STEPS = 10_000
_LONGEST = 2000  # characters of one value


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
    values = _values(query, _SIZE | _CLEAR)
    width, height = _size(values)
    file, inputs = _applied(values)
    home = _home()
    card = torch.cuda.get_device_name(home) if home.type == "cuda" else None
    bench = read_bench(Path(folder_paths.get_user_directory()) / BENCH, card)
    settings = resolve_settings(file, inputs)
    shown = window_payload(settings, width, height, bench)
    return shown | chosen_payload(settings, inputs, file, token_grid(width, height))


def bands(query: Query) -> Any:
    """How an image would be cut here; see `bands_payload`."""
    values = _values(query, _SIZE | _CLEAR | _BANDS | _LOADED)
    width, height = _size(values)
    clear, settings = _settings(values), resolve_bands(values["devices"], values["bands"], "exact")
    found = machine([device.name for device in settings.devices])
    if values["model"]:  # when the bands are chosen, its weights lie on the device and other models need not
        weights, used = _subject(values).size, used_by_models()
        found = [replace(device, free=device.free + used.get(device.name, 0) - weights) for device in found]
    return bands_payload(clear, settings, width, height, found, model_here(_home()).shape)


def preset(query: Query) -> Any:
    """The nodes that a preset of CLEAR 4K / 8K stands for; see `single_nodes`."""
    values = _values(query, _SIZE | _DEVICES | {"preset": (str, None)})
    return {"nodes": single_nodes(values["preset"], values["devices"], *_size(values))}


def upscale(query: Query) -> Any:
    """The stages of an upscale and what each takes; see `upscale_payload`."""
    values = _values(query, _SIZE | _CLEAR | _BANDS | _UPSCALE)
    width, height = _size(values)
    clear, settings = _settings(values), resolve_bands(values["devices"], values["bands"], "exact")
    within("stages", values["stages"], 0, MAX_STAGES)
    if values["vae_tiling"] not in TILINGS:
        raise ValueError(f"vae_tiling is {values['vae_tiling']!r:.60}; choose one of: {', '.join(TILINGS)}")
    target = Target(*(values[name] for name in ("target_megapixels", "size_by", "long_side", "scale")))
    stages = plan_stages(width, height, target.megapixels_of(width, height), values["stages"])
    found = machine([device.name for device in settings.devices])
    vae = partial(vae_plan_here, tiling=values["vae_tiling"])
    return upscale_payload((width, height), stages, clear, settings, found, model_here(_home()).shape, vae)


def devices(query: Query) -> Any:
    """The devices of this machine and the one that each entry of a `devices` text names; see `devices_payload`."""
    entries = named_devices(_values(query, _DEVICES)["devices"])
    return devices_payload(entries, machine([device for _, device in entries]))


def weights(query: Query) -> Any:
    """The weights files; see `weights_payload`."""
    _values(query, {})
    here = [name for name in weights_files() if absent_release(name) is None]
    return weights_payload({name: weights_path(name).stat().st_size for name in here})


def estimate(query: Query) -> Any:
    """What a run would take; see `estimate_payload`. banded: whether it runs in bands, and `bands` counts."""
    values = _values(query, _SIZE | _CLEAR | _BANDS | _RUN)
    width, height = _size(values)
    if not 0 <= values["steps"] <= _MOST_STEPS:
        raise BadRequest(f"steps is {values['steps']}; allowed is 0 to {_MOST_STEPS}")
    file, inputs = _applied(values)
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


ROUTES: Mapping[str, Callable[[Query], Any]] = {
    "window": window,
    "bands": bands,
    "preset": preset,
    "devices": devices,
    "weights": weights,
    "upscale": upscale,
    "estimate": estimate,
}


def machine(named: Collection[str] = ()) -> list[MachineDevice]:
    """ComfyUI's own device, the others of its kind, and the CPU. Devices of another kind only if they are `named`.

    Asking a GPU for its free memory takes some of it, which ComfyUI on the CPU should not do unasked.
    """
    home = _home()
    found = machine_devices(home)
    return [_device(device) for device in found if device.type in (home.type, "cpu") or device_name(device) in named]


def _home() -> torch.device:
    return torch.device(comfy.model_management.get_torch_device())


def _device(device: torch.device) -> MachineDevice:
    free: Any = comfy.model_management.get_free_memory(device)
    total: Any = comfy.model_management.get_total_memory(device)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return MachineDevice(device_name(device), title, int(free), int(total))


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


def _values(query: Query, known: Mapping[str, tuple[_Kind, Any]]) -> dict[str, Any]:
    """Every known argument, read, or its default. Raises BadRequest for one that is unknown, missing or unreadable."""
    for name in query:
        if name not in known:
            raise BadRequest(f"unknown argument {name[:40]!r}; known are: {', '.join(known) or 'none'}")
    found = {}
    for name, (kind, default) in known.items():
        text = query.get(name)
        if text is None and default is None:
            raise BadRequest(f"{name} is missing")
        if text is not None and len(text) > _LONGEST:
            raise BadRequest(f"{name} is longer than {_LONGEST} characters")
        try:
            found[name] = default if text is None else _read(kind, text)
        except ValueError:
            what = "neither true nor false" if kind is bool else "not a number"
            raise BadRequest(f"{name} is {str(text)[:40]!r}, which is {what}") from None
    return found


def _read(kind: _Kind, text: str) -> Any:
    """Raises ValueError for a text that is none of its kind."""
    if kind is not bool:
        return kind(text)
    if text not in _TRUTH:
        raise ValueError(text)
    return _TRUTH[text]


def _size(values: Mapping[str, Any]) -> tuple[int, int]:
    for name in ("width", "height"):
        if not 1 <= values[name] <= LARGEST_SIDE:
            raise BadRequest(f"{name} is {values[name]}; allowed is 1 to {LARGEST_SIDE} pixels")
    return values["width"], values["height"]


def _variant(name: str) -> Variant:
    """By the file's name, which tells that of a released one before it is here; else by its header."""
    known = variant_from_name(name)
    if known is None:
        known = parse_weights(*read_header(weights_path(name)), name).variant
    return known


def _applied(values: Mapping[str, Any]) -> tuple[ClearWeights | None, ApplyInputs]:
    """The weights' name and variant, and the inputs, of Apply CLEAR Attention or of what CLEAR 4K / 8K stands for."""
    if values["preset"]:
        values = {**_values({}, _CLEAR), "weights": resolve_preset(values["preset"], AUTO_DEVICES)[0].weights}
    name = values["weights"]
    file = ClearWeights(name, _variant(name), {}, {}, (0, 0)) if name else None
    return file, ApplyInputs(**{name: values[name] for name in _WIDGETS})


def _settings(values: Mapping[str, Any]) -> ClearSettings:
    return resolve_settings(*_applied(values))


def _subject(values: Mapping[str, Any]) -> Subject:
    """The model that the loader in the graph would load."""
    return subject_of(model_here(_home()), values["folder"], values["model"], values["dtype"])


def _wanted(query: Query) -> Wanted:
    """What `Measure now` is to measure. Raises BadRequest or ValueError."""
    values = _values(query, _CLEAR | _LOADED)
    clear = _settings(values)
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
