"""PyTorch's dense kernel with the window as a mask: quadratic, but nothing is gathered or copied.

Fastest where the image is so small that the window covers much of it (about 512 px at r = 16). The mask is
cached, because every layer of a step needs the same one.

Constraints: the mask takes at most 32 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import AttentionCall, AttentionResult
from ..softmax import dense_attention, dense_attention_unchecked
from .base import pooled_mask_refusal, window_bias
from .geometry import Geometries
from .on_device import DeviceCache, tensor_bytes

_LARGEST_MASK = 32 * 2**20  # bytes


class MaskedBackend:
    name = "masked"
    summary = "PyTorch's dense kernel under a mask: for small images"
    differentiable = True

    def __init__(self) -> None:
        self.biases: DeviceCache[Tensor] = DeviceCache(2 * _LARGEST_MASK, tensor_bytes)
        self._geometries = Geometries()

    def unavailable(self) -> str | None:
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        queries, keys = _sizes(call)
        size = queries * keys * call.query.element_size()
        if size > _LARGEST_MASK:
            return f"its mask would take {size / 2**20:,.0f} MB; it takes up to {_LARGEST_MASK / 2**20:.0f} MB"
        return pooled_mask_refusal(call)

    def remark(self, call: AttentionCall) -> str | None:
        return None

    def executed_pairs(self, call: AttentionCall) -> int:
        queries, keys = _sizes(call)
        return queries * keys

    def run(self, call: AttentionCall) -> AttentionResult:
        query, key, value = call.query, call.key, call.value
        if call.pooled is not None:
            key = torch.cat((call.pooled.key, key), dim=2)
            value = torch.cat((call.pooled.value, value), dim=2)
        bias = self.biases.get(
            (self._geometries.of(call.pattern), query.dtype),
            query,
            lambda: window_bias(call.pattern.mask(query.device), key.shape[2], query.dtype),
        )
        mask = call.mask_bias(slice(None))
        bias = bias if mask is None else bias + mask
        attend = dense_attention if call.may_mask_rows else dense_attention_unchecked
        out, lse = attend(query, key, value, call.scale, bias, return_lse=call.return_lse, budget=call.budget)
        return AttentionResult(out.transpose(1, 2).flatten(2), lse)


def _sizes(call: AttentionCall) -> tuple[int, int]:
    return call.pattern.query_tokens, call.pattern.key_tokens + call.pattern.pooled
