"""Attention alone: PyTorch's dense kernels, FlexAttention and this pack's backends, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from clear_core.backends import BACKENDS, Backend
from clear_core.backends.triton.tile_plan import GridPair, tile_plan
from clear_core.call import AttentionCall
from clear_core.flux import HEAD_DIM, PIXELS_PER_TOKEN, TEXT_TOKENS
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern, attention_flops
from clear_core.pooling import mean_weight, pool_key_value
from clear_core.scale import softmax_scale
from clear_core.window import Window

from .rivals import authors_way, dense_kernels, tiled_flex
from .timing import medians, wait


@dataclass(frozen=True, slots=True)
class Case:
    """One question. side: image tokens a side. dense, flex: whether those are timed beside it."""

    side: int
    radius: int
    down_factor: int
    heads: int
    dtype: torch.dtype
    dense: bool
    flex: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One answer. Seconds for all heads.

    needed_tflops, executed_tflops: the exact mask's arithmetic, and what the kernel computes, over the time.
    per_pair: time of an executed (query, key) pair, the best dense kernel's in the same run being 1.
    floor: seconds that the needed arithmetic takes at the machine's own matrix rate.
    speedup: over the best dense kernel in the same run; None where dense was not run.
    """

    pixels: int
    side: int
    radius: int
    down_factor: int
    heads: int
    dtype: str
    backend: str
    seconds: float
    needed_tflops: float
    executed_tflops: float | None
    per_pair: float | None
    floor: float
    speedup: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def cases(device: torch.device, *, flex: bool) -> list[Case]:
    """On a GPU FLUX's own heads at 1K to 8K; on a CPU two heads at sizes that end within a minute."""
    if device.type == "cuda":
        sides, radii, heads, dtype, dense_up_to = (64, 128, 256, 512), (8, 16, 32), 24, torch.bfloat16, 512
    else:
        sides, radii, heads, dtype, dense_up_to = (32, 64, 128, 256), (8, 16), 2, torch.float32, 128
    return [
        Case(side, radius, factor, heads, dtype, side <= dense_up_to, flex)
        for side in sides
        for radius in radii
        for factor in (1, 4)
        if device.type == "cuda" or factor == 1 or radius == 8
    ]


def make_call(case: Case, device: torch.device) -> AttentionCall:
    """Random tensors for a case."""
    layout = TokenLayout(TEXT_TOKENS, Grid(case.side, case.side))
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, case.heads, layout.tokens, HEAD_DIM)
    query, key, value = torch.randn(shape, generator=generator, device=device, dtype=case.dtype)
    pooled = None
    if case.down_factor > 1:
        weight = mean_weight(case.down_factor)
        pooled = pool_key_value(key[:, :, TEXT_TOKENS:], value[:, :, TEXT_TOKENS:], layout.image, weight)
    pattern = LocalPattern.whole(layout, Window(case.radius), pooled=0 if pooled is None else pooled.tokens)
    scale = softmax_scale(HEAD_DIM, layout.tokens)
    return AttentionCall(query, key, value, pattern, scale=scale, pooled=pooled)


def measure(case: Case, device: torch.device, repeats: int, rate: float) -> Iterator[Row]:
    """Dense, FlexAttention and every backend of ours that can run the case. rate: the machine's, in FLOP/s."""
    call = make_call(case, device)
    functions: dict[str, Callable[[], Tensor]] = {}
    if case.dense:
        functions |= dense_kernels(call.query, call.key, call.value, call.scale)
    if case.flex:
        functions |= _flex(call)
    ours = worth_timing(call)
    functions |= {name: lambda backend=backend: backend.run(call).out for name, backend in ours.items()}
    seconds = medians(functions, device, repeats)
    dense = min((taken for name, taken in seconds.items() if name.startswith("dense")), default=None)
    unit = 4 * case.heads * HEAD_DIM
    pairs = {name: backend.executed_pairs(call) for name, backend in ours.items()}
    every = call.pattern.query_tokens * call.pattern.key_tokens
    for name, taken in seconds.items():
        window = None if name.startswith("dense") else call.pattern.circle
        down_factor = 1 if window is None else case.down_factor
        needed = attention_flops(
            call.pattern.layout, window, heads=case.heads, head_dim=HEAD_DIM, down_factor=down_factor
        )
        executed = every if window is None else pairs.get(name)
        yield Row(
            case.side * PIXELS_PER_TOKEN,
            case.side,
            case.radius,
            case.down_factor,
            case.heads,
            str(case.dtype).removeprefix("torch."),
            name,
            taken,
            needed / taken / 1e12,
            None if executed is None else executed * unit / taken / 1e12,
            None if executed is None or dense is None else per_pair(taken, executed, dense, call),
            needed / rate,
            None if dense is None else dense / taken,
        )


def _flex(call: AttentionCall) -> dict[str, Callable[[], Tensor]]:
    # Compiled functions of earlier cases count towards a limit, after which FlexAttention writes out all scores.
    torch.compiler.reset()
    layout, radius = call.pattern.layout, call.pattern.circle.radius
    found: dict[str, Callable[[], Tensor]] = {}
    key, value = call.key, call.value
    if call.pooled is None:
        found["flex tiles"] = tiled_flex(call.query, key, value, layout.text, layout.image, radius, call.scale)
    else:
        key = torch.cat((key, call.pooled.key), dim=2)
        value = torch.cat((value, call.pooled.value), dim=2)
    authors = authors_way(call.query, key, value, layout.text, layout.image, radius, call.pattern.pooled, call.scale)
    return found if authors is None else {"authors' way": authors, **found}


def worth_timing(call: AttentionCall) -> dict[str, Backend]:
    """By name, every backend that can run a call, but for the oracle, which is quadratic and slow on purpose."""
    every = (backend for backend in BACKENDS if backend.name != "reference")
    return {backend.name: backend for backend in every if not (backend.unavailable() or backend.refusal(call))}


def per_pair(seconds: float, executed: int, dense: float, call: AttentionCall) -> float:
    """Time of an executed (query, key) pair, that of a dense kernel being 1. dense: its seconds for the same call."""
    return (seconds / executed) / (dense / (call.pattern.query_tokens * call.pattern.key_tokens))


@dataclass(frozen=True, slots=True)
class SetUp:
    """What a new image size costs before its first call, in seconds."""

    what: str
    seconds: float


def set_up(device: torch.device) -> Iterator[SetUp]:
    """The plan of 8K at r = 32, and the fused kernel's first call and its first call at a new size."""
    grid = Grid(512, 512)
    pair = GridPair(grid, grid.rows, grid, grid.rows)
    plan = {"plan": lambda: tile_plan(pair, Window(32), (8, 16), (8, 8))}
    yield SetUp("plan of tiles, 8192 px, r 32, on the CPU", medians(plan, torch.device("cpu"), 5)["plan"])
    if device.type != "cuda":
        return
    triton = next(backend for backend in BACKENDS if backend.name == "triton")
    for what, side in (("first call, compiling what is not cached", 64), ("first call at another size", 100)):
        call = make_call(Case(side, 16, 1, 24, torch.bfloat16, False, False), device)
        wait(device)
        started = time.perf_counter()
        if triton.unavailable() or triton.refusal(call):
            return
        triton.run(call)
        wait(device)
        yield SetUp(f"triton: {what}", time.perf_counter() - started)


def table(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [
        f"{'image':>7} {'radius':>6} {'down':>4}  {'backend':<16}{'ms':>10}{'floor':>9}{'needed':>9}{'executed':>9}"
        f"{'per pair':>9}{'against dense':>15}"
    ]
    for row in rows:
        against = "" if row.speedup is None else f"{row.speedup:.2f} x"
        executed = "" if row.executed_tflops is None else f"{row.executed_tflops:.3g}"
        per_pair = "" if row.per_pair is None else f"{row.per_pair:.2f}"
        lines.append(
            f"{row.pixels:>7} {row.radius:>6} {row.down_factor:>4}  {row.backend:<16}{row.seconds * 1e3:>10.2f}"
            f"{row.floor * 1e3:>9.2f}{row.needed_tflops:>9.3g}{executed:>9}{per_pair:>9}{against:>15}"
        )
    return "\n".join(lines)
