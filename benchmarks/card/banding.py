"""One attention layer in bands on one device beside the layer whole: time, waits of the host, look-ups of plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from clear_core.backends import BACKENDS
from clear_core.backends.sdpa.backend import SdpaBackend
from clear_core.backends.triton.backend import TritonBackend
from clear_core.flux import PIXELS_PER_TOKEN

from ..timing import host_seconds, medians
from .banded_layer import in_bands, whole
from .correctness import relative_error
from .scale import Scale
from .supervise import Row

_WAITS = tuple(f"{api}{what}Synchronize" for api in ("cuda", "hip") for what in ("Stream", "Device", "Event"))


def rows(scale: Scale) -> Iterator[Row]:
    side, radius = scale.sides[-1], scale.radii[1]
    with torch.inference_mode():
        call = scale.call(side, radius)
        expected = whole(call)[:, call.pattern.query_slices.image].double()
        for count in scale.bands:
            run = in_bands(call, count, [scale.device])
            first, later = _look_ups(run), _look_ups(in_bands(call, count, [scale.device]))
            error = relative_error(torch.cat(run(), 1), expected)
            functions: dict[str, Callable[[], object]] = {"whole": lambda: whole(call), "bands": run}
            seconds = medians(functions, scale.device, scale.repeats)
            yield {
                "pixels": side * PIXELS_PER_TOKEN,
                "radius": radius,
                "bands": count,
                "ms": seconds["bands"] * 1e3,
                "ms whole": seconds["whole"] * 1e3,
                "times as long": seconds["bands"] / seconds["whole"],
                "difference": error,
                "ms of the host": host_seconds(run, scale.device) * 1e3,
                "waits": _waits(run, scale) - _waits(lambda: None, scale),
                "plans looked up": {name: asked for name, (_, asked) in first.items()},
                "hit rate, first step": {name: hits / asked for name, (hits, asked) in first.items()},
                "hit rate, next step": {name: hits / asked for name, (hits, asked) in later.items()},
            }


def _look_ups(run: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """Run it. For each backend that looked plans up: how many it found, and how many it asked for."""
    before = _counts()
    run()
    found = {name: (hits - before[name][0], asked - before[name][1]) for name, (hits, asked) in _counts().items()}
    return {name: counts for name, counts in found.items() if counts[1]}


def _counts() -> dict[str, tuple[int, int]]:
    caches = {}
    for backend in BACKENDS:
        if isinstance(backend, SdpaBackend):
            caches[backend.name] = backend.plans
        elif isinstance(backend, TritonBackend):
            caches[backend.name] = backend.uploads.cache
    return {name: (cache.hits, cache.hits + cache.misses) for name, cache in caches.items()}


def _waits(run: Callable[[], object], scale: Scale) -> int:
    """How often the host waited for the card, the profiler's own waiting included."""
    activities = [ProfilerActivity.CPU, *([] if scale.rehearsal else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as profiler:
        run()
    return sum(event.count for event in profiler.key_averages() if event.key in _WAITS)
