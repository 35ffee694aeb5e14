"""What the server answers to the page's requests, ready for JSON: window and cost, bands and memory, devices, weights.

The page draws these and computes none of it. Sizes come in as pixels and go out as image tokens.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ....clear_core.backends import AUTO
from ....clear_core.bands.memory import ModelShape
from ....clear_core.flux import PIXELS_PER_TOKEN, pixel_size, token_grid
from ....clear_core.hub.released import RELEASED, REPOSITORY, find, size_text
from ....clear_core.layout import Grid, TokenLayout
from ....clear_core.pattern import attention_flops
from ....clear_core.pooling import pooled_grid
from ....clear_core.show.fits import step_bytes
from ....clear_core.weights import ClearWeights, variant_from_name
from ...options.bands import BandSettings
from ...options.by_size import is_large
from ...options.clear import ApplyInputs, ClearSettings
from ...options.lanes import parse_device, resolve_lanes, split_devices
from ..bands.memory import RESERVE, fitting_count, plans
from ..flux_model import PROMPT_TOKENS
from ..machine import MachineDevice

LICENCE = "FLUX.1 [dev] non-commercial licence"
_PAGE = f"https://huggingface.co/{REPOSITORY}"
_NEAR = math.sqrt(2)  # a measurement at another size counts for sides up to so much larger or smaller

Payload = dict[str, Any]


def window_payload(settings: ClearSettings, width: int, height: int, bench: Payload | str) -> Payload:
    """The attention window over an image of width x height, and its cost in a step in which it is active.

    bench: what `read_bench` gave. keys: those of the image token in the middle.
    """
    grid, window, factor = token_grid(width, height), settings.window, settings.down_factor
    layout = TokenLayout(PROMPT_TOKENS, grid)
    cells = pooled_grid(grid, factor) if factor > 1 else None
    needed = attention_flops(layout, window, down_factor=factor)
    return {
        "grid": [grid.height, grid.width],
        "token_pixels": PIXELS_PER_TOKEN,
        "radius": window.radius,
        "down_factor": factor,
        "half_widths": [window.half_width(dy) for dy in range(window.halo + 1)],
        "keys": window.tokens_at(grid.height // 2, grid.width // 2, grid.height, grid.width)
        + PROMPT_TOKENS
        + (cells.tokens if cells else 0),
        "dense_keys": layout.tokens,
        "cells": [cells.height, cells.width] if cells else None,
        "share": needed / attention_flops(layout, None),
        "speedup": bench if isinstance(bench, str) else _measured(bench, settings, width, height),
    }


def chosen_payload(settings: ClearSettings, inputs: ApplyInputs, weights: ClearWeights | None, image: Grid) -> Payload:
    """What the node chooses where its inputs leave it open, and what the weights were not trained for.

    trained: the radius of the weights; None without weights, or where the file does not say it. large: whether the
    image needs NTK scaling and proportional attention.
    """
    return {
        "auto_radius": inputs.radius == 0,
        "with_weights": weights is not None,
        "trained": None if weights is None else weights.variant.radius,
        "ntk_factor": settings.ntk_at(image),
        "proportional": settings.proportional_at(image),
        "by_size": settings.by_size,
        "large": is_large(*pixel_size(image)),
    }


def read_bench(path: Path, card: str | None) -> Payload | str:
    """A table that `python dev.py bench --json` wrote on this machine, or why there is none, as a clause.

    card: the name of this machine's GPU; None where it has none.
    """
    if not path.is_file():
        return f"no {path.name} in ComfyUI's user folder"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        device, rows = str(table["device"]), list(table["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} cannot be read as a table of python dev.py bench"
    if card is not None and card != device:
        return f"{path.name} is of another machine ({device[:60]})"
    return {"device": device, "rows": rows}


def _measured(bench: Payload, settings: ClearSettings, width: int, height: int) -> Payload | str:
    """The speed-up of one layer's attention over dense, of the measurement that is nearest in size."""
    side = math.sqrt(width * height)
    wanted = (settings.window.radius, settings.down_factor)
    try:
        near = [
            (abs(math.log(row["pixels"] / side)), -float(row["speedup"]), row)
            for row in bench["rows"]
            if (row["radius"], row["down_factor"]) == wanted
            and row["speedup"] is not None
            and not row["backend"].startswith("dense")
            and settings.backend in (AUTO, row["backend"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the table cannot be read"
    distance, times, row = min(near, key=lambda entry: entry[:2], default=(math.inf, 0.0, {}))
    if distance > math.log(_NEAR):
        return "not measured at this radius and size"
    return {"times": -times, "pixels": row["pixels"], "backend": row["backend"], "device": bench["device"]}


def bands_payload(
    clear: ClearSettings,
    settings: BandSettings,
    width: int,
    height: int,
    machine: Sequence[MachineDevice],
    shape: ModelShape,
) -> Payload:
    """How an image of width x height would be cut on this machine as it is now, and what each device needs for it.

    machine: its devices, the one that ComfyUI computes on first. Bands: first row, row after the last, lane. Memory
    is that of one step beside the weights; GPUs of different speed are taken as equal. chosen: whether memory did it.
    """
    here = {device.name: device for device in machine}
    resolved = resolve_lanes(settings.devices, list(here))
    devices = [here[lane.name] for lane in resolved.lanes]
    grid = token_grid(width, height)
    plan_of = plans(grid, clear, [lane.share or 1.0 for lane in resolved.lanes])
    room = _room(devices)
    asked = settings.count(grid)
    plan = plan_of(asked or fitting_count(plan_of, len(devices), room, PROMPT_TOKENS, shape, 1))
    return {
        "grid": [plan.image.height, plan.image.width],
        "bands": [[rows.start, rows.stop, lane] for rows, lane in zip(plan.bands, plan.lanes, strict=True)],
        "halo": None if plan.window is None else plan.window.halo,
        "lanes": [device.name for device in devices[: plan.lane_count]],
        "peaks": step_bytes(plan, grid, PROMPT_TOKENS, shape, [device.name for device in devices]),
        "missing": list(resolved.missing),
        "chosen": not asked and room is not None,
    }


def _room(devices: Sequence[MachineDevice]) -> int | None:
    """Bytes that each lane may take of its device; None on a CPU, whose memory does not limit the bands."""
    lanes_on = Counter(device.name for device in devices)
    room = [(device.free - RESERVE) // lanes_on[device.name] for device in devices if device.kind != "cpu"]
    return min(room, default=None)


def devices_payload(entries: Sequence[tuple[str, str]], machine: Sequence[MachineDevice]) -> Payload:
    """This machine's devices, those that auto takes, and which device each entry of a `devices` text names.

    entries: what `named_devices` gave.
    """
    return {
        "machine": [asdict(device) for device in machine],
        "auto": [lane.name for lane in resolve_lanes((), [device.name for device in machine]).lanes],
        "entries": [{"text": text, "device": device} for text, device in entries],
    }


def named_devices(text: str) -> list[tuple[str, str]]:
    """Each entry of a `devices` text and its device; an entry that names none stands for itself, to be unticked."""
    return [(entry, _named_device(entry)) for entry in split_devices(text)]


def _named_device(entry: str) -> str:
    try:
        return parse_device(entry).name
    except ValueError:
        return entry


def weights_payload(here: dict[str, int]) -> list[Payload]:
    """The files that Load CLEAR Weights lists. here: size in bytes of each that is in models/clear."""
    names = [*here, *(released.name for released in RELEASED if released.name not in here)]
    return [_weights_file(name, here.get(name)) for name in names]


def _weights_file(name: str, size: int | None) -> Payload:
    released, variant = find(name), variant_from_name(name)
    bytes_ = size if size is not None else released.size if released else 0
    return {
        "name": name,
        "here": size is not None,
        "size": size_text(bytes_),
        "radius": variant.radius if variant else None,
        "down_factor": variant.down_factor if variant else None,
        "licence": LICENCE if released else None,
        "link": _PAGE if released else None,
    }
