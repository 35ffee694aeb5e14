"""Dense attention of some queries over some keys, with the log-sum-exp where it is asked for.

The pieces every backend shares: PyTorch's own kernels where only the output is wanted, and the same
thing written out in float32 where the log-sum-exp is needed too, for PyTorch has no portable way to ask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import AttentionResult


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, *, return_lse: bool, budget: int
) -> AttentionResult:
    """Softmax attention over all given keys.

    query: [batch, heads, queries, head_dim]; key and value [batch, heads, keys, head_dim].
    bias: additive, broadcastable to [batch, heads, queries, keys], or None.
    budget: bytes of scores held at a time where they are written out.
    Returns out as [batch, heads, queries, head_dim] (heads not merged) and lse.
    """
    if not return_lse:
        return AttentionResult(F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale), None)
    batch, heads, queries, _ = query.shape
    out = torch.empty_like(query)
    lse = torch.empty(batch, heads, queries, device=query.device, dtype=torch.float32)
    step = max(1, budget // (4 * batch * heads * max(1, key.shape[2])))
    for start in range(0, queries, step):
        part = slice(start, start + step)
        part_bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, part]
        out[:, :, part], lse[:, :, part] = explicit_attention(query[:, :, part], key, value, scale, part_bias)
    return AttentionResult(out, lse)


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out, in float32 or better. A query that sees nothing gets 0 and lse -inf.

    Shapes as in `dense_attention`; leading dimensions may be any.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(query.to(dtype), key.to(dtype).transpose(-2, -1)).mul_(scale)
    if bias is not None:
        scores = scores.add_(bias.to(dtype))
    lse = torch.logsumexp(scores, dim=-1, keepdim=True)
    # exp(-inf - -inf) would be NaN for a row with no visible key; 0 in its place gives exp(-inf) = 0.
    weights = scores.sub_(lse.masked_fill(lse == -math.inf, 0.0)).exp_()
    out = torch.matmul(weights, value.to(dtype)).to(query.dtype)
    return out, lse.squeeze(-1).float()


def merge(parts: list[AttentionResult]) -> AttentionResult:
    """Join attention over disjoint sets of keys into attention over all of them, exactly.

    Each part's out is [batch, queries, heads * head_dim] and its lse [batch, heads, queries]; the weight
    of a part is exp(lse - lse of all), so nothing is approximated. Queries that see nothing stay 0.
    """
    lses = []
    for part in parts:
        if part.lse is None:
            raise ValueError("merging partial attention needs each part's log-sum-exp: ask for it with return_lse=True")
        lses.append(part.lse)
    stacked = torch.stack(lses)
    total = torch.logsumexp(stacked, dim=0)
    weights = (stacked - total.masked_fill(total == -math.inf, 0.0)).exp()
    batch, heads, queries = total.shape
    out = torch.zeros(batch, queries, heads, parts[0].out.shape[2] // heads, device=total.device)
    for part, weight in zip(parts, weights, strict=True):
        out += part.out.unflatten(2, (heads, -1)).float() * weight.transpose(1, 2)[..., None]
    return AttentionResult(out.flatten(2, 3).to(parts[0].out.dtype), total)
