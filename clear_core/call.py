"""One call of local attention: its tensors, validated once, as every backend receives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .pattern import LocalPattern
from .pooling import Pooled

DEFAULT_BUDGET = 256 * 2**20
"""Bytes of temporary memory a backend may use for gathered keys and values."""


class CallError(ValueError):
    """The tensors or numbers of a call do not fit its pattern or each other."""


class AttentionResult(NamedTuple):
    """out: [batch, queries, heads * head_dim] in the query's dtype.

    lse: float32 [batch, heads, queries], the natural log of the sum of exp(score), None without `return_lse`.
    """

    out: Tensor
    lse: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """Tensors and numbers of one call; see `clear_core.attention.local_attention` for their meaning."""

    query: Tensor
    key: Tensor
    value: Tensor
    pattern: LocalPattern
    scale: float
    pooled: Pooled | None = None
    mask: Tensor | None = None
    return_lse: bool = False
    budget: int = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        _check_tensors(self)
        if self.pooled is not None:
            _check_pooled(self, self.pooled)
        if self.mask is not None:
            _check_mask(self, self.mask)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise CallError(f"the softmax scale must be a positive number, got {self.scale}")
        if self.budget < 1:
            raise CallError(f"the memory budget must be at least 1 byte, got {self.budget}")

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def head_dim(self) -> int:
        return self.query.shape[3]

    @property
    def records_gradients(self) -> bool:
        pooled = () if self.pooled is None else (self.pooled.key, self.pooled.value)
        tensors = (self.query, self.key, self.value, *pooled)
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    @property
    def may_mask_rows(self) -> bool:
        """Whether a row may be fully masked. Never where every query sees the text and there is no mask to hide it."""
        return self.mask is not None or self.pattern.text_key_tokens == 0

    def mask_bias(self, queries: slice) -> Tensor | None:
        """The caller's mask for some queries as an additive bias in the query's dtype; None without a mask."""
        if self.mask is None:
            return None
        return as_bias(self.mask[:, :, queries] if self.mask.shape[2] > 1 else self.mask, self.query.dtype)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as an additive bias: False becomes -inf, an additive mask keeps its values.

    What float16 cannot hold becomes its largest number, not infinity: -1e9 lowers a score, -inf would hide the key.
    """
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)
    if mask.dtype != dtype and dtype == torch.float16:
        limits = torch.finfo(dtype)
        mask = mask.clamp(limits.min, limits.max).masked_fill_(mask == -math.inf, -math.inf)
    return mask.to(dtype)


def _check_tensors(call: AttentionCall) -> None:
    query, key, value, pattern = call.query, call.key, call.value, call.pattern
    shape, seen = query.shape, key.shape
    if not len(shape) == len(seen) == value.ndim == 4:
        raise CallError(f"query, key and value must be [batch, heads, tokens, head_dim], got {_shapes(call)}")
    if seen != value.shape or (seen[0], seen[1], seen[3]) != (shape[0], shape[1], shape[3]):
        raise CallError(f"query, key and value must agree in batch, heads and head_dim, got {_shapes(call)}")
    if shape[2] != pattern.query_tokens or seen[2] != pattern.key_tokens:
        raise CallError(
            f"the layout has {pattern.query_tokens} queries and {pattern.key_tokens} keys "
            f"(text {pattern.layout.text}, image {pattern.layout.image}), got {_shapes(call)}"
        )
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        raise CallError(f"query, key and value need one floating dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if not query.device == key.device == value.device:
        raise CallError(f"query, key and value must share a device, got {query.device}, {key.device}, {value.device}")


def _shapes(call: AttentionCall) -> str:
    return f"query {tuple(call.query.shape)}, key {tuple(call.key.shape)}, value {tuple(call.value.shape)}"


def _check_pooled(call: AttentionCall, pooled: Pooled) -> None:
    batch, heads, _, head_dim = call.query.shape
    expected = (batch, heads, call.pattern.pooled, head_dim)
    if tuple(pooled.key.shape) != expected or tuple(pooled.value.shape) != expected:
        raise CallError(
            f"down-sampled keys and values must be {expected}, "
            f"got {tuple(pooled.key.shape)} and {tuple(pooled.value.shape)}"
        )


def _check_mask(call: AttentionCall, mask: Tensor) -> None:
    full = (call.batch, call.heads, call.pattern.query_tokens, call.pattern.key_tokens)
    if mask.ndim != 4 or any(have not in (1, want) for have, want in zip(mask.shape, full, strict=True)):
        raise CallError(f"the attention mask must broadcast to {full}, got {tuple(mask.shape)}")
