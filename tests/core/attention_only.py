"""A model of nothing but attention, for forwards in bands without the host: its arithmetic means nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clear_core.attention import local_attention
from clear_core.bands.exchange import Event, Traffic
from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward, Forwards
from clear_core.bands.workers import BandWorker, ReplicatedWorker
from clear_core.call import AttentionResult
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled, pool_key_value
from clear_core.window import Window

HEADS, HEAD_DIM = 2, 8
TEXT, LAYERS = 5, 3  # unless a forward has others


def forwards(
    plan: BandPlan,
    layers: int = LAYERS,
    text: int = TEXT,
    *,
    down_factor: int = 1,
    at_layer: Callable[[int, int], None] | None = None,
) -> Forwards:
    """Of tokens that depend on the image's size alone. at_layer: told (lane, layer) before a band attends."""
    layout = TokenLayout(text, plan.image, ())
    pattern = LocalPattern.whole(layout, plan.window or Window(99))
    tokens = torch.randn(1, HEADS, layout.tokens, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 1.5, down_factor**2).reshape(down_factor, down_factor)

    def compute(
        query: Tensor, key: Tensor, value: Tensor, /, pattern: LocalPattern, pooled: Pooled | None, *, return_lse: bool
    ) -> AttentionResult:
        out, lse, _ = local_attention(query, key, value, pattern, pooled=pooled, return_lse=return_lse)
        return AttentionResult(out, lse)

    def pool(key: Tensor, value: Tensor, rows: Band) -> Pooled:
        return pool_key_value(key, value, Grid(len(rows), plan.image.width), weight)

    def next_layer(part: Tensor, out: Tensor) -> Tensor:
        return (part + out.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2)) / 2

    def replicated(worker: ReplicatedWorker) -> Tensor:
        part = tokens[:, :, : text + 1]
        for layer in range(layers):
            worker.at_block(layer)
            part = next_layer(part, worker.attend(part, part, part, pattern, compute))
        return part

    def band(worker: BandWorker) -> Tensor:
        rows, width = worker.rows, plan.image.width
        part = tokens[:, :, text + rows.start * width - 1 : text + rows.stop * width]
        for layer in range(layers):
            worker.at_block(layer)
            if at_layer is not None:
                at_layer(worker.lane, layer)
            part = next_layer(part, worker.attend(part, part, part, compute, pool if down_factor > 1 else None))
        return part[:, :, 1:]

    return Forwards(replicated, band)


def traced(plan: BandPlan, layers: int, text: int) -> tuple[list[Event], Traffic]:
    """What a forward in one process does and sends, and the bytes of that."""
    trace: list[Event] = []
    forward = BandedForward(plan, [torch.device("cpu")] * plan.lane_count, trace=trace)
    forward.run(forwards(plan, layers, text))
    return trace, forward.traffic
