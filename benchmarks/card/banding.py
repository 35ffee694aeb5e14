"""One attention layer in bands on one device beside the layer whole: time, and how often the host waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from clear_core.attention import local_attention
from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward, Forwards
from clear_core.bands.workers import BandWorker, ReplicatedWorker
from clear_core.call import AttentionCall, AttentionResult
from clear_core.flux import PIXELS_PER_TOKEN
from clear_core.layout import Grid
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled
from clear_core.window import Window

from ..timing import host_seconds, medians
from .correctness import relative_error
from .scale import Scale
from .supervise import Row

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def rows(scale: Scale) -> Iterator[Row]:
    side, radius = scale.sides[-1], scale.radii[1]
    with torch.inference_mode():
        call = scale.call(side, radius)
        whole = _whole(call)
        runs = {count: _in_bands(call, Grid(side, side), radius, count) for count in scale.bands}
        expected = whole()[:, call.pattern.query_slices.image]
        for count, run in runs.items():
            error = relative_error(run(), expected.double())
            functions: dict[str, Callable[[], Tensor]] = {"whole": whole, "bands": run}
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
                "waits": _waits(run, scale),
            }


def _whole(call: AttentionCall) -> Callable[[], Tensor]:
    return lambda: local_attention(call.query, call.key, call.value, call.pattern, scale=call.scale).out


def _in_bands(call: AttentionCall, image: Grid, radius: int, count: int) -> Callable[[], Tensor]:
    """The call's image rows, [batch, rows, channels], from as many bands as asked."""
    plan = BandPlan.cut(image, count, Window(radius))
    text, width = call.pattern.layout.text, image.width

    def compute(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        /,
        pattern: LocalPattern,
        pooled: Pooled | None,
        *,
        return_lse: bool,
    ) -> AttentionResult:
        found = local_attention(query, key, value, pattern, scale=call.scale, pooled=pooled, return_lse=return_lse)
        return AttentionResult(found.out, found.lse)

    def replicated(worker: ReplicatedWorker) -> Tensor:
        tokens = [torch.cat((x[:, :, :text], x[:, :, :1]), 2) for x in (call.query, call.key, call.value)]
        worker.at_block(0)
        return worker.attend(tokens[0], tokens[1], tokens[2], call.pattern, compute)[:, :text]

    def band(worker: BandWorker) -> Tensor:
        rows = slice(text + worker.rows.start * width, text + worker.rows.stop * width)
        query, key, value = (x[:, :, rows] for x in (call.query, call.key, call.value))
        worker.at_block(0)
        return worker.attend(query, key, value, compute, None)

    def run() -> Tensor:
        return torch.cat(BandedForward(plan, [call.query.device]).run(Forwards(replicated, band)), dim=1)

    return run


def _waits(run: Callable[[], Tensor], scale: Scale) -> int:
    """How often the host waited for the card."""
    activities = [ProfilerActivity.CPU, *([] if scale.rehearsal else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as profiler:
        run()
    return sum(event.count for event in profiler.key_averages() if event.key in _WAITS)
