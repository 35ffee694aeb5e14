"""The definition: a masked softmax, written out in float32 or better.

It builds the exact mask from coordinates and shares no tiling with the fast backends, so that they can be
compared with it. Slow (quadratic), but its memory is bounded too.

Constraints: only those that every backend has.
"""

from __future__ import annotations

import torch

from ..call import AttentionCall, AttentionResult
from ..softmax import explicit_attention
from .base import pooled_mask_refusal


class ReferenceBackend:
    name = "reference"
    summary = "the exact definition, slow: for checking the others"
    differentiable = False

    def unavailable(self) -> str | None:
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        return pooled_mask_refusal(call)

    def remark(self, call: AttentionCall) -> str | None:
        return None

    def executed_pairs(self, call: AttentionCall) -> int:
        return call.pattern.query_tokens * (call.pattern.key_tokens + call.pattern.pooled)

    def run(self, call: AttentionCall) -> AttentionResult:
        key, value = call.key, call.value
        if call.pooled is not None:
            key = torch.cat((call.pooled.key, key), dim=2)
            value = torch.cat((call.pooled.value, value), dim=2)
        queries = call.pattern.query_tokens
        out = torch.empty_like(call.query)
        lse = torch.empty(call.batch, call.heads, queries, device=key.device, dtype=torch.float32)
        step = max(1, call.budget // (4 * max(1, call.batch * call.heads * key.shape[2])))
        for start in range(0, queries, step):
            part = slice(start, start + step)
            visible = call.pattern.mask(key.device, part)
            bias = torch.zeros(visible.shape, device=key.device).masked_fill_(~visible, -torch.inf)
            mask = call.mask_bias(part)
            if mask is not None:
                bias = bias + mask.float()
            out[:, :, part], lse[:, :, part] = explicit_attention(call.query[:, :, part], key, value, call.scale, bias)
        merged = out.transpose(1, 2).flatten(2, 3)
        return AttentionResult(merged, lse if call.return_lse else None)
