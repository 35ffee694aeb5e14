"""What cards without Triton run: sizes of the gathered tiles, and what a pair costs each backend."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from clear_core.backends import Backend
from clear_core.backends.masked import MaskedBackend
from clear_core.backends.registry import COSTS
from clear_core.backends.sdpa.backend import SdpaBackend
from clear_core.flux import PIXELS_PER_TOKEN

from ..attention import per_pair
from ..rivals import dense_kernels
from ..timing import medians
from .scale import Scale
from .supervise import Row

_TILES = (8, 12, 16, 24, 32)


def rows(scale: Scale) -> Iterator[Row]:
    current = SdpaBackend().tile
    with torch.inference_mode():
        for side in scale.sides[:-1]:
            for radius in scale.radii:
                call = scale.call(side, radius)
                kernels = dense_kernels(call.query, call.key, call.value, call.scale)
                backends: dict[str, Backend] = {f"tiles of {tile}": SdpaBackend(tile) for tile in _TILES}
                if MaskedBackend().refusal(call) is None:
                    backends["masked"] = MaskedBackend()
                functions = {name: partial(backend.run, call) for name, backend in backends.items()}
                seconds = medians({**kernels, **functions}, scale.device, scale.repeats, patience=2.0)
                dense = min(seconds[name] for name in kernels)
                kind = "cpu" if scale.device.type == "cpu" else "gpu"
                for name, backend in backends.items():
                    yield {
                        "pixels": side * PIXELS_PER_TOKEN,
                        "radius": radius,
                        "backend": name,
                        "current": name in ("masked", f"tiles of {current}"),
                        "ms": seconds[name] * 1e3,
                        "against dense": dense / seconds[name],
                        "per pair": per_pair(seconds[name], backend.executed_pairs(call), dense, call),
                        "per pair in the source": COSTS[backend.name, kind].per_pair,
                    }
