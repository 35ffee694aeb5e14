"""Dense softmax attention with its log-sum-exp, and the exact merge of partial results.

What every backend shares: PyTorch's own kernels, and the same arithmetic written out in float32 where the
log-sum-exp is wanted and no kernel returns it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cache import BoundedCache
from .call import AttentionResult


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    *,
    return_lse: bool,
    budget: int,
) -> AttentionResult:
    """Softmax attention over all given keys. A fully masked row gives 0 and log-sum-exp -inf.

    query: [batch, heads, queries, head_dim]; key and value [batch, heads, keys, head_dim].
    bias: additive, broadcastable to [batch, heads, queries, keys], or None.
    budget: bytes of scores held at a time where they are written out.
    Returns out as [batch, heads, queries, head_dim] (heads not merged), and lse.
    """
    result = dense_attention_unchecked(query, key, value, scale, bias, return_lse=return_lse, budget=budget)
    if bias is None or return_lse or key.shape[2] == 0:
        return result
    # PyTorch's kernels give a fully masked row 0 or NaN, by version and by kernel. Finding these rows costs one read
    # of the bias, which the kernel itself reads once per head, and a pass over the result.
    return AttentionResult(result.out.masked_fill_(bias.amax(-1, keepdim=True) == -math.inf, 0.0), None)


def dense_attention_unchecked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    *,
    return_lse: bool,
    budget: int,
) -> AttentionResult:
    """`dense_attention` where the caller knows that the bias masks no row fully; such a row could become NaN."""
    if key.shape[2] == 0:
        lse = query.new_full(query.shape[:3], -math.inf, dtype=torch.float32) if return_lse else None
        return AttentionResult(torch.zeros_like(query), lse)
    if not return_lse:
        return AttentionResult(F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale), None)
    fused = FUSED_KERNELS.attend(query, key, value, scale) if bias is None else None
    if fused is not None:
        return fused
    batch, heads, queries, _ = query.shape
    out = torch.empty_like(query)
    lse = torch.empty(batch, heads, queries, device=query.device, dtype=torch.float32)
    step = max(1, budget // (4 * max(1, batch * heads) * key.shape[2]))
    for start in range(0, queries, step):
        part = slice(start, start + step)
        part_bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, part]
        out[:, :, part], lse[:, :, part] = explicit_attention(query[:, :, part], key, value, scale, part_bias)
    return AttentionResult(out, lse)


def split_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, splits: int) -> AttentionResult | None:
    """Attention over all keys in parts of the keys that run side by side, merged by log-sum-exp (flash decoding).

    For few queries and many keys: a fused kernel has a program for each head and block of queries, and these may be
    fewer than the multiprocessors. Shapes as in `dense_attention`, every key visible. None without a fused kernel.
    """
    length = key.shape[2] // splits
    outs, lses = [], []
    for item in range(query.shape[0]):  # one at a time, so that the parts of its keys are a batch without a copy
        own = slice(item, item + 1)
        whole, rest = slice(0, length * splits), slice(length * splits, None)
        q, k, v = query[own], key[own], value[own]
        keys, values = (x[:, :, whole].unflatten(2, (splits, length)).movedim(2, 1).flatten(0, 1) for x in (k, v))
        parts = [FUSED_KERNELS.attend(q.expand(splits, -1, -1, -1), keys, values, scale)]
        if length * splits < key.shape[2]:
            parts.append(FUSED_KERNELS.attend(q, k[:, :, rest], v[:, :, rest], scale))
        done = [(part.out, part.lse) for part in parts if part is not None and part.lse is not None]
        if len(done) < len(parts):
            return None
        out, lse = (torch.cat(tensors) for tensors in zip(*done, strict=True))
        total = lse.logsumexp(0)
        outs.append(((lse - total).exp()[..., None] * out).sum(0).to(query.dtype))
        lses.append(total)
    return AttentionResult(torch.stack(outs), torch.stack(lses))


Kernel = Callable[..., tuple[Tensor, ...]]


class FusedKernels:
    """PyTorch's fused kernels that also return the log-sum-exp, which is converted to the natural log where it is not.

    ROCm's flash kernel returned the base 2 before PyTorch 2.8 (ROCm/aotriton#108). What a kernel returns is found by a
    tiny call, once for each device and dtype.
    """

    def __init__(self, find: Callable[[Tensor, Tensor, Tensor], Kernel | None] | None = None) -> None:
        """find: the kernel for query, key and value, or None."""
        self._find = find or _kernel_with_lse
        self._units: BoundedCache[tuple[torch.device, torch.dtype], float | None] = BoundedCache(64)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> AttentionResult | None:
        """Attention over all keys; None where there is no such kernel, or none whose log-sum-exp is understood."""
        kernel = self._find(query, key, value)
        if kernel is None:
            return None
        unit = 1.0 if type(query) is not Tensor else self._unit(query)  # a fake tensor holds no data
        if unit is None:
            return None
        out, lse, *_ = kernel(query, key, value, scale=scale)
        return AttentionResult(out, lse if unit == 1.0 else lse * unit)

    def _unit(self, like: Tensor) -> float | None:
        return self._units.get((like.device, like.dtype), lambda: self._measured_unit(like))

    def _measured_unit(self, like: Tensor) -> float | None:
        """The natural log over the kernel's: 1 or ln 2; None for anything else.

        Every score is 1 and there are 8 keys, so that the natural log-sum-exp is 1 + ln 8.
        """
        tokens = torch.zeros(1, 1, 8, like.shape[3], device=like.device, dtype=like.dtype)
        tokens[..., 0] = 1.0
        kernel = self._find(tokens, tokens, tokens)
        if kernel is None:
            return None
        returned = float(kernel(tokens, tokens, tokens, scale=1.0)[1].flatten()[0])
        for unit in (1.0, math.log(2.0)):
            if math.isclose(returned * unit, 1 + math.log(8), rel_tol=0.02):
                return unit
        return None


def _kernel_with_lse(query: Tensor, key: Tensor, value: Tensor) -> Kernel | None:
    """PyTorch's fused kernel that also returns the log-sum-exp for these tensors; None if there is none."""
    if query.shape[2] == 0:
        return None
    if query.device.type == "cpu":
        return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if query.device.type == "cuda":
        params = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, False)
        if torch.backends.cuda.can_use_flash_attention(params):
            return torch.ops.aten._scaled_dot_product_flash_attention
    return None


FUSED_KERNELS: Final = FusedKernels()
"""Those of this PyTorch."""


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out, in float32 or better. A fully masked row gives 0 and lse -inf.

    Shapes as in `dense_attention`; leading dimensions may be any.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(query.to(dtype), key.to(dtype).transpose(-2, -1)).mul_(scale)
    if bias is not None:
        scores = scores.add_(bias.to(dtype))
    lse = torch.logsumexp(scores, dim=-1, keepdim=True)
    # exp(-inf - -inf) would be NaN for a fully masked row; 0 in its place gives exp(-inf) = 0.
    weights = scores.sub_(lse.masked_fill(lse == -math.inf, 0.0)).exp_()
    out = torch.matmul(weights, value.to(dtype)).to(query.dtype)
    return out, lse.squeeze(-1).float()


class RunningMerge:
    """Log-sum-exp merge of attention over disjoint sets of keys, one partial result after another.

    A partial result weighs exp(its log-sum-exp - the total log-sum-exp), so the merge is exact; float32 in between.
    Rows that are fully masked in every part stay 0.
    """

    def __init__(self) -> None:
        self._out: Tensor | None = None
        self._lse: Tensor | None = None

    def add(self, part: AttentionResult) -> None:
        """Merge one more part: out [batch, queries, heads * head_dim], lse [batch, heads, queries]."""
        if part.lse is None:
            raise ValueError("merging partial attention needs each part's log-sum-exp: pass return_lse=True")
        out = part.out.unflatten(2, (part.lse.shape[1], -1)).to(torch.float32, copy=True)
        if self._out is None or self._lse is None:
            self._out, self._lse = out, part.lse
            return
        lse = torch.logaddexp(self._lse, part.lse)
        finite_lse = lse.masked_fill(lse == -math.inf, 0.0)
        self._out.mul_((self._lse - finite_lse).exp().transpose(1, 2)[..., None])
        self._out.addcmul_(out, (part.lse - finite_lse).exp().transpose(1, 2)[..., None])
        self._lse = lse

    def result(self, dtype: torch.dtype) -> AttentionResult:
        """Attention over all keys, `out` in a dtype. At least one part must have been added."""
        assert self._out is not None
        return AttentionResult(self._out.flatten(2, 3).to(dtype), self._lse)


def merge(parts: list[AttentionResult]) -> AttentionResult:
    """Attention over all keys from attention over disjoint sets of them, exactly; see `RunningMerge`."""
    running = RunningMerge()
    for part in parts:
        running.add(part)
    return running.result(parts[0].out.dtype)
