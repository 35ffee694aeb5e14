"""What the page draws on nodes, ready for JSON: the window and its cost, the bands and their memory, the weights files.

The page computes none of it. Sizes are in pixels where they come in, in tokens where they go out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....clear_core.bands.memory import ModelShape, lane_bytes, stock_bytes
from ....clear_core.bands.plan import BandPlan, cut_rows, deal
from ....clear_core.flux import TEXT_TOKENS, token_grid
from ....clear_core.hub.released import RELEASED, REPOSITORY, find, size_text
from ....clear_core.layout import TokenLayout
from ....clear_core.pattern import attention_flops
from ....clear_core.pooling import pooled_grid
from ....clear_core.weights import variant_from_name
from ...options.bands import AUTO, BandSettings
from ...options.clear import ClearSettings
from ..bands.memory import RESERVE, fitting_count

LICENCE = "FLUX.1 [dev] non-commercial licence"
_PAGE = f"https://huggingface.co/{REPOSITORY}"
_NEAR = math.sqrt(2)  # a measurement at another size counts for sides up to so much larger or smaller
_FLUX = ModelShape()

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Device:
    """name: as `devices` takes it, such as cuda:0. free, total: bytes of memory."""

    name: str
    title: str
    free: int
    total: int

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


def window_facts(settings: ClearSettings, width: int, height: int, bench: Facts | str) -> Facts:
    """The window over an image of width x height, and what it costs in a step in which it is on.

    bench: what `read_bench` gave.
    """
    grid, window, factor = token_grid(width, height), settings.window, settings.down_factor
    layout = TokenLayout(TEXT_TOKENS, grid)
    cells = pooled_grid(grid, factor) if factor > 1 else None
    needed = attention_flops(layout, window, down_factor=factor)
    return {
        "grid": [grid.height, grid.width],
        "radius": window.radius,
        "down_factor": factor,
        "half_widths": [window.half_width(dy) for dy in range(window.halo + 1)],
        "keys": window.tokens + TEXT_TOKENS + (cells.tokens if cells else 0),
        "dense_keys": layout.tokens,
        "cells": [cells.height, cells.width] if cells else None,
        "share": needed / attention_flops(layout, None),
        "speedup": bench if isinstance(bench, str) else _measured(bench, settings, width, height),
    }


def read_bench(path: Path, card: str | None) -> Facts | str:
    """A table that `python dev.py bench --json` wrote on this machine, or why there is none, as a clause.

    card: the name of this machine's card; None where it has none.
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


def _measured(bench: Facts, settings: ClearSettings, width: int, height: int) -> Facts | str:
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


def band_facts(
    clear: ClearSettings, settings: BandSettings, width: int, height: int, machine: Sequence[Device]
) -> Facts:
    """How an image of width x height would be cut on this machine as it is now, and what each device needs for it.

    machine: its devices, the one that ComfyUI computes on first. Bands: first row, row after the last, lane. Memory
    is one step's of FLUX.1 in 16 bits besides the weights; cards of different speed are taken as equal.
    """
    grid = token_grid(width, height)
    devices, shares, missing = _lanes(settings, machine)
    window = clear.window if clear.whole_schedule and clear.blocks.everything else None

    def plan_of(count: int) -> BandPlan:
        rows = cut_rows(grid.height, count, clear.down_factor)
        return BandPlan(grid, rows, deal(len(rows), shares), window, together=clear.down_factor > 1)

    lanes_on = Counter(device.name for device in devices)
    room = [(device.free - RESERVE) // lanes_on[device.name] for device in devices if device.kind != "cpu"]
    count = settings.bands or fitting_count(plan_of, len(devices), min(room, default=None), TEXT_TOKENS, _FLUX, 1)
    plan = plan_of(count)
    peaks: Counter[str] = Counter()
    for lane in range(plan.lane_count):
        whole = len(plan.bands) == 1  # then nothing is cut
        peaks[devices[lane].name] += (
            stock_bytes(grid, TEXT_TOKENS, _FLUX) if whole else lane_bytes(plan, lane, TEXT_TOKENS, _FLUX)
        )
    return {
        "grid": [grid.height, grid.width],
        "bands": [[rows.start, rows.stop, lane] for rows, lane in zip(plan.bands, plan.lanes, strict=True)],
        "halo": None if window is None else window.halo,
        "lanes": [device.name for device in devices[: plan.lane_count]],
        "peaks": dict(peaks),
        "missing": missing,
        "chosen": settings.bands == 0,
    }


def _lanes(settings: BandSettings, machine: Sequence[Device]) -> tuple[list[Device], list[float], list[str]]:
    """Each lane's device and share, and the names that this machine lacks; as `Replicas` has them when it runs."""
    home = machine[0]
    if not settings.devices:
        every = [home, *(device for device in machine[1:] if device.kind == home.kind == "cuda")]
        return every, [1.0] * len(every), []
    here = {device.name: device for device in machine}
    found = [(here.get(_numbered(wanted.name)), wanted.share or 1.0) for wanted in settings.devices]
    missing = [wanted.name for wanted, (device, _) in zip(settings.devices, found, strict=True) if device is None]
    lanes = [(device, share) for device, share in found if device is not None] or [(home, 1.0)]
    return [device for device, _ in lanes], [share for _, share in lanes], missing


def _numbered(name: str) -> str:
    return name if ":" in name or name == "cpu" else f"{name}:0"


def weights_facts(here: dict[str, int]) -> list[Facts]:
    """The files that Load CLEAR Weights lists. here: size in bytes of each that is in models/clear."""
    names = [*here, *(released.name for released in RELEASED if released.name not in here)]
    return [_weights_file(name, here.get(name)) for name in names]


def _weights_file(name: str, size: int | None) -> Facts:
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
