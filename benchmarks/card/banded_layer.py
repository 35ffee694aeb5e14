"""One attention layer over random tensors, whole and in bands on any devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clear_core.attention import local_attention
from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward, Forwards
from clear_core.bands.transfer import Transfers
from clear_core.bands.workers import BandWorker, ReplicatedWorker
from clear_core.call import AttentionCall, AttentionResult
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled


def whole(call: AttentionCall) -> Tensor:
    """All tokens: [batch, tokens, channels]."""
    return local_attention(call.query, call.key, call.value, call.pattern, scale=call.scale).out


def in_bands(call: AttentionCall, count: int, devices: Sequence[torch.device]) -> Callable[[], list[Tensor]]:
    """What computes the call's image rows, [batch, rows, channels] for each of about `count` bands, top to bottom.

    devices: one for each lane. The tokens are put there now, so that a call finds them as a model's layers leave them.
    The first call is the first layer of a forward, which looks its plans up; later calls are its later layers.
    """
    image, text = call.pattern.layout.image, call.pattern.layout.text
    plan = BandPlan.cut(image, count, call.pattern.circle, shares=[1.0] * len(devices))
    devices = devices[: plan.lane_count]
    tokens = (call.query, call.key, call.value)
    replicated_tokens = [[torch.cat((x[:, :, :text], x[:, :, :1]), 2).to(device) for x in tokens] for device in devices]
    band_tokens: list[list[Tensor]] = []
    for rows, lane in zip(plan.bands, plan.lanes, strict=True):
        span = slice(text + rows.start * image.width, text + rows.stop * image.width)
        band_tokens.append([x[:, :, span].to(devices[lane]) for x in tokens])
    of_this_plan = call.pattern.as_key()  # it remembers what each band attends to
    transfers = Transfers()

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
        worker.at_block(0)
        query, key, value = replicated_tokens[worker.lane]
        return worker.attend(query, key, value, of_this_plan, compute)[:, :text]

    def band(worker: BandWorker) -> Tensor:
        worker.at_block(0)
        query, key, value = band_tokens[worker.band]
        return worker.attend(query, key, value, compute, None)

    return lambda: BandedForward(plan, devices, transfers=transfers).run(Forwards(replicated, band))
