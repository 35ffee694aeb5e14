"""`Measure now`: what a double and a single block of the host's FLUX take on a device, and the attention of a layer.

The blocks have random weights of the model's shape. Their attention is left out of their own timings and timed by
itself, through this pack's backends, so that `clear_core.show.estimate` can tell the parts apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import comfy.ldm.flux.layers
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor

from ...clear_core.attention import local_attention
from ...clear_core.backends import AUTO, BACKENDS, COSTS
from ...clear_core.call import AttentionCall
from ...clear_core.layout import Grid
from ...clear_core.show.cost import Model, Options, example_call
from ...clear_core.show.estimate import Rate, Sample, Timings, dtype_name, fit, text_queries
from ...clear_core.window import Window
from .attention_call import OVERRIDE
from .machine import synchronize

CPU_SECONDS: Final = 30.0
GPU_SECONDS: Final = 15.0
"""After so long no further round begins."""

_MOST_ROUNDS, _LEAST_ROUNDS = 5, 1
_LONG_ENOUGH = 0.02  # seconds; a GPU's shorter work is repeated, so that starting it does not count
_ROOM = 4 * 2**30  # bytes of a GPU's memory that the largest timing may need
_TRANSFERRED = 256 * 2**20  # bytes
_TEXT = 256
_KEPT = (torch.float8_e4m3fn, torch.bfloat16, torch.float16)  # in which weights are kept


Clock = Callable[[], float]


class Stopped(RuntimeError):
    """The measurement was given up; the text says why."""


@dataclass(frozen=True, slots=True)
class _Timing:
    """part: double, single, dense, cast NAME, transfer, or local NAME. work: what `run` does once."""

    part: str
    work: Sample
    run: Callable[[], object]


def measure(
    model: Model,
    backend: str,
    window: Window,
    progress: Callable[[float], None],
    stop: Callable[[], str | None],
    clock: Clock = time.perf_counter,
) -> Timings:
    """Time blocks and attention on the model's device, in rounds of everything in turn; the median of each counts.

    backend, window: of Apply CLEAR Attention. progress: called with the share that is done. stop: asked before each
    timing; a sentence ends it with Stopped. clock: in seconds. Raises what PyTorch raises where memory is short.
    """
    device = model.device
    if device.type != "cpu":
        comfy.model_management.free_memory(_ROOM, device)
    with torch.inference_mode():
        timings = list(_timings(model, backend, window))
        taken = _rounds(timings, device, progress, stop, clock)
    samples: dict[str, list[tuple[Sample, float]]] = {}
    for timing, seconds in zip(timings, taken, strict=True):
        samples.setdefault(timing.part, []).append((timing.work, seconds))
    rates = {part: fit(found) for part, found in samples.items()}
    transfer = rates.get("transfer", Rate()).token
    return Timings(
        double=rates["double"],
        single=rates["single"],
        dense=rates["dense"],
        local=_named(rates, "local "),
        cast={name: rate.token for name, rate in _named(rates, "cast ").items()},
        transfer=1 / transfer if transfer else None,
    )


def _named(rates: dict[str, Rate], prefix: str) -> dict[str, Rate]:
    return {part.removeprefix(prefix): rate for part, rate in rates.items() if part.startswith(prefix)}


def _rounds(
    timings: list[_Timing],
    device: torch.device,
    progress: Callable[[float], None],
    stop: Callable[[], str | None],
    clock: Clock,
) -> list[float]:
    """The median seconds of each."""
    budget = CPU_SECONDS if device.type == "cpu" else GPU_SECONDS
    taken: list[list[float]] = [[] for _ in timings]
    repeats = [1] * len(timings)
    started = time.perf_counter()
    for round_ in range(1 + _MOST_ROUNDS):  # the first warms up
        spent = time.perf_counter() - started
        if round_ > _LEAST_ROUNDS and spent * (round_ + 1) / round_ > budget:
            break
        for index, timing in enumerate(timings):
            if not round_ and device.type == "cpu" and not _is_least(timing, timings):
                continue  # it takes seconds, and its first call no more than the others
            why = stop()
            if why is not None:
                raise Stopped(why)
            seconds = _seconds(timing.run, device, repeats[index], clock)
            if round_:
                taken[index].append(seconds)
            elif device.type != "cpu":
                again = _seconds(timing.run, device, 1, clock)  # the first call compiles and plans
                repeats[index] = 1 + int(_LONG_ENOUGH / max(again, 1e-6))
            rounds = (round_ + (index + 1) / len(timings)) / (1 + _MOST_ROUNDS)
            progress(max(rounds, min(1.0, (time.perf_counter() - started) / budget)))
    return [statistics.median(seconds) for seconds in taken]


def _is_least(timing: _Timing, timings: list[_Timing]) -> bool:
    """Whether it does the least of its part."""
    return timing.work == min(other.work for other in timings if other.part == timing.part)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int, clock: Clock) -> float:
    synchronize(device)
    started = clock()
    for _ in range(repeats):
        run()
    synchronize(device)
    return max((clock() - started) / repeats, 1e-9)


def _timings(model: Model, backend: str, window: Window) -> Iterator[_Timing]:
    yield from _block_timings(model)
    yield from _dense_timings(model)
    yield from _local_timings(model, backend, window)
    c = model.channels
    for dtype in _KEPT:
        if dtype != model.dtype:
            kept = torch.zeros(4 * c, c, device=model.device, dtype=dtype)
            yield _Timing(f"cast {dtype_name(dtype)}", (0, kept.numel(), 0), lambda kept=kept: kept.to(model.dtype))
    if model.device.type == "cuda":
        here = torch.empty(_TRANSFERRED, dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(here, device=model.device)
        yield _Timing("transfer", (0, _TRANSFERRED, 0), lambda: there.copy_(here, non_blocking=True))


def _block_timings(model: Model) -> Iterator[_Timing]:
    """Two sizes of each block, its attention answered at once."""
    double_block: Any = comfy.ldm.flux.layers.DoubleStreamBlock
    single_block: Any = comfy.ldm.flux.layers.SingleStreamBlock
    made: dict[str, Any] = {"dtype": model.dtype, "device": model.device, "operations": comfy.ops.disable_weight_init}
    double = _filled(double_block(model.channels, model.heads, 4.0, qkv_bias=True, **made))
    single = _filled(single_block(model.channels, model.heads, 4.0, **made))
    vector = _random(model, 1, model.channels)
    for image in _image_tokens(model):
        tokens = _TEXT + image
        img, txt, x = (_random(model, 1, count, model.channels) for count in (image, _TEXT, tokens))
        pe = torch.randn(1, 1, tokens, model.head_dim // 2, 2, 2, device=model.device)
        options = {OVERRIDE: lambda *args, answer=x, **kwargs: answer}
        # Clones: the blocks add to their inputs in place.
        yield _Timing(
            "double",
            (1, tokens, 0),
            lambda img=img, txt=txt, pe=pe, options=options: double(
                img.clone(), txt.clone(), vector, pe, transformer_options=options
            ),
        )
        yield _Timing(
            "single",
            (1, tokens, 0),
            lambda x=x, pe=pe, options=options: single(x.clone(), vector, pe, transformer_options=options),
        )


def _image_tokens(model: Model) -> tuple[int, int]:
    if model.device.type != "cpu":
        return 1024, 4096
    # A wide model takes seconds there; a narrow one is timed at sizes that leave the caches, as an image does.
    most = min(2048, max(512, 512 * 3072 // model.channels))
    return most // 8, most


def _dense_timings(model: Model) -> Iterator[_Timing]:
    """Full attention, and the text's queries over many keys."""
    attend: Any = comfy.ldm.modules.attention.optimized_attention
    small = model.device.type == "cpu"
    for queries, keys in ((512, 512), (_TEXT, 4096)) if small else ((2048, 2048), (4096, 4096)):
        q, k = (_random(model, 1, model.heads, count, model.head_dim) for count in (queries, keys))
        yield _Timing(
            "dense",
            (1, queries, queries * keys),
            lambda q=q, k=k: attend(q, k, k, model.heads, skip_reshape=True),
        )


def _local_timings(model: Model, backend: str, window: Window) -> Iterator[_Timing]:
    """Attention through windows over some grids, by every backend that `backend` may come to."""
    small = model.device.type == "cpu"
    kind = "cpu" if small else "gpu"
    radii = sorted({16 if window.radius < 12 else 8, window.radius})
    sides = (16, 40) if small else (32, 64, 128)
    for one in BACKENDS:
        asked = one.name == backend or (backend == AUTO and (one.name, kind) in COSTS)
        if not asked or one.unavailable() is not None:
            continue
        for radius in radii:
            options = Options(Window(radius), backend=one.name, text=_TEXT)
            for side in sides:
                call = example_call(model, options, Grid(side, side))
                if one.refusal(call) is None:
                    yield _local_timing(model, call, one)


def _local_timing(model: Model, call: AttentionCall, backend: Any) -> _Timing:
    """One call, of the image's queries alone where the backend leaves the text's to the dense kernel."""
    pattern = call.pattern
    if text_queries(call, backend.name):
        pattern = pattern.part(
            query_rows=pattern.query_rows, key_rows=pattern.key_rows, replicated_queries=False, replicated_keys=True
        )
    q, k, v = (
        _random(model, 1, model.heads, count, model.head_dim)
        for count in (pattern.query_tokens, pattern.key_tokens, pattern.key_tokens)
    )
    own = AttentionCall(q, k, v, pattern, call.scale)
    return _Timing(
        f"local {backend.name}",
        (1, pattern.query_tokens, backend.executed_pairs(own)),
        lambda: local_attention(q, k, v, pattern, scale=call.scale, backend=backend.name),
    )


def _filled(block: torch.nn.Module) -> torch.nn.Module:
    """With weights that are numbers of a usual size, the same again and again: so many random ones take seconds."""
    with torch.no_grad():
        for parameter in block.parameters():
            flat = parameter.view(-1)
            noise = torch.randn(min(len(flat), 2**20 + 1), device=flat.device).to(flat.dtype) * 0.02
            for start in range(0, len(flat), len(noise)):
                part = flat[start : start + len(noise)]
                part.copy_(noise[: len(part)])
    return block


def _random(model: Model, *shape: int) -> Tensor:
    return torch.randn(shape, device=model.device, dtype=torch.float32).to(model.dtype)
