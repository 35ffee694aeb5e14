"""Attention of one layer. Dense attention once for each size: at 8192 px it takes as long as all the rest together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from clear_core.call import AttentionCall
from clear_core.flux import HEAD_DIM, PIXELS_PER_TOKEN
from clear_core.pattern import attention_flops

from ..attention import worth_timing
from ..rivals import authors_way, dense_kernels
from ..timing import host_seconds, matrix_rate, medians
from .scale import Scale
from .supervise import Row

_LAUNCHES = 20


def rows(scale: Scale) -> Iterator[Row]:
    rate = matrix_rate(scale.device, scale.dtype)
    yield {"backend": "matrix products", "TFLOP/s": rate / 1e12}
    with torch.inference_mode():
        for side in scale.sides:
            yield from _size(scale, side, rate)
        yield from _authors(scale)


def _size(scale: Scale, side: int, rate: float) -> Iterator[Row]:
    pixels = side * PIXELS_PER_TOKEN
    call = scale.call(side, scale.radii[0])
    kernels = dense_kernels(call.query, call.key, call.value, call.scale)
    taken = medians(kernels, scale.device, scale.repeats, patience=6.0)
    for name, seconds in taken.items():
        yield {"pixels": pixels, "backend": name, "ms": seconds * 1e3}
    dense = min(taken.values())
    for radius in scale.radii:
        for factor in (1, 4):
            call = scale.call(side, radius, factor)
            for name, run in _ours(call).items():
                seconds = medians({name: run}, scale.device, scale.repeats, patience=10.0)[name]
                flops = attention_flops(
                    call.pattern.layout,
                    call.pattern.circle,
                    heads=scale.heads,
                    head_dim=HEAD_DIM,
                    down_factor=factor,
                )
                row = {
                    "pixels": pixels,
                    "backend": name,
                    "radius": radius,
                    "down": factor,
                    "ms": seconds * 1e3,
                    "against dense": dense / seconds,
                    "of the matrix rate": flops / seconds / rate,
                }
                if side == scale.sides[0]:  # the same at any size, and there the card waits for it
                    row["us to launch"] = host_seconds(run, scale.device, 1 if scale.rehearsal else _LAUNCHES) * 1e6
                yield row


def _ours(call: AttentionCall) -> dict[str, Callable[[], Tensor]]:
    return {name: lambda backend=backend: backend.run(call).out for name, backend in worth_timing(call).items()}


def _authors(scale: Scale) -> Iterator[Row]:
    """Last, because it is compiled for a minute; at the second largest size, beyond which its mask does not fit."""
    if scale.rehearsal:
        yield {"left out": "the authors' way: FlexAttention is not compiled in a rehearsal"}
        return
    call = scale.call(scale.sides[-2], scale.radii[1])
    layout, radius = call.pattern.layout, call.pattern.circle.radius
    run = authors_way(call.query, call.key, call.value, layout.text, layout.image, radius, 0, call.scale)
    if run is None:
        return
    pixels = scale.sides[-2] * PIXELS_PER_TOKEN
    found = medians({"authors' way": run, **_ours(call)}, scale.device, scale.repeats)
    for name, seconds in found.items():
        row = {"pixels": pixels, "backend": name, "radius": radius, "down": 1, "ms": seconds * 1e3}
        yield {**row, "against the authors' way": found["authors' way"] / seconds}
