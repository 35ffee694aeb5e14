"""Attention alone: PyTorch's dense scaled_dot_product_attention against this pack's backends, in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from clear_core.backends import BackendError, choose_backend, list_backends
from clear_core.call import AttentionCall
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern, attention_flops
from clear_core.pooling import mean_weight, pool_key_value
from clear_core.scale import softmax_scale
from clear_core.window import Window

from .timing import medians

TEXT, HEAD_DIM = 512, 128


@dataclass(frozen=True, slots=True)
class Case:
    """One row's question. side: image tokens a side. dense: whether dense attention is timed beside it."""

    side: int
    radius: int
    down_factor: int
    heads: int
    dtype: torch.dtype
    dense: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One row's answer. Seconds for all heads; tflops: needed arithmetic over time; speedup: over dense."""

    pixels: int
    side: int
    radius: int
    down_factor: int
    heads: int
    dtype: str
    backend: str
    seconds: float
    tflops: float
    speedup: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def cases(device: torch.device) -> list[Case]:
    """On a GPU FLUX's own heads at 1K to 8K; on a CPU two heads at sizes that end within a minute."""
    if device.type == "cuda":
        sides, radii, heads, dtype, dense_up_to = (64, 128, 256, 512), (8, 16, 32), 24, torch.bfloat16, 512
    else:
        sides, radii, heads, dtype, dense_up_to = (64, 128, 256), (8, 16), 2, torch.float32, 128
    return [
        Case(side, radius, factor, heads, dtype, side <= dense_up_to)
        for side in sides
        for radius in radii
        for factor in (1, 4)
        if device.type == "cuda" or factor == 1 or radius == 8
    ]


def measure(case: Case, device: torch.device, repeats: int) -> Iterator[Row]:
    """Dense and every fast backend that can run the case."""
    layout = TokenLayout(TEXT, Grid(case.side, case.side))
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, case.heads, layout.tokens, HEAD_DIM)
    query, key, value = torch.randn(shape, generator=generator, device=device, dtype=case.dtype)
    scale = softmax_scale(HEAD_DIM, layout.tokens)
    pooled = None
    if case.down_factor > 1:
        weight = mean_weight(case.down_factor)
        pooled = pool_key_value(key[:, :, TEXT:], value[:, :, TEXT:], layout.image, weight)
    pattern = LocalPattern.whole(layout, Window(case.radius), pooled=0 if pooled is None else pooled.tokens)
    call = AttentionCall(query, key, value, pattern, scale=scale, pooled=pooled)

    functions = {"dense": lambda: F.scaled_dot_product_attention(query, key, value, scale=scale)} if case.dense else {}
    for status in list_backends():
        if status.name == "reference":
            continue  # the oracle is quadratic and slow on purpose
        try:
            backend = choose_backend(call, status.name).backend
        except BackendError:
            continue
        functions[status.name] = lambda backend=backend: backend.run(call).out
    seconds = medians(functions, device, repeats)
    for name, taken in seconds.items():
        window = None if name == "dense" else Window(case.radius)
        flops = attention_flops(
            layout, window, heads=case.heads, head_dim=HEAD_DIM, down_factor=1 if window is None else case.down_factor
        )
        yield Row(
            case.side * 16,
            case.side,
            case.radius,
            case.down_factor,
            case.heads,
            str(case.dtype).removeprefix("torch."),
            name,
            taken,
            flops / taken / 1e12,
            seconds["dense"] / taken if "dense" in seconds else None,
        )


def table(rows: list[Row]) -> str:
    """Rows for a person."""
    lines = [f"{'image':>7} {'radius':>6} {'down':>4}  {'backend':<10}{'ms':>10}{'TFLOP/s':>9}{'against dense':>15}"]
    for row in rows:
        against = "" if row.speedup is None else f"{row.speedup:.2f} x"
        lines.append(
            f"{row.pixels:>7} {row.radius:>6} {row.down_factor:>4}  {row.backend:<10}"
            f"{row.seconds * 1e3:>10.1f}{row.tflops:>9.3f}{against:>15}"
        )
    return "\n".join(lines)
