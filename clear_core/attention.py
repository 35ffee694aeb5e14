"""CLEAR's local attention: the one entry point over all backends."""

from __future__ import annotations

from math import sqrt

from torch import Tensor

from .backends import AUTO, choose_backend
from .call import DEFAULT_BUDGET, AttentionCall, AttentionResult
from .pattern import LocalPattern
from .pooling import Pooled


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: LocalPattern,
    *,
    scale: float | None = None,
    pooled: Pooled | None = None,
    mask: Tensor | None = None,
    backend: str = AUTO,
    return_lse: bool = False,
    budget: int = DEFAULT_BUDGET,
) -> AttentionResult:
    """Softmax attention in which each image query sees its window, the text and the down-sampled tokens.

    A query that sees nothing (hidden by the mask, or with no key in a band) gets 0 and log-sum-exp -inf, from every
    backend. No NaN comes of finite tensors while the scores fit in float32, as those of float16 always do.

    query: [batch, heads, queries, head_dim] after RoPE, ordered text, image rows, references, as many as
        `pattern` says. key, value: the same for the keys. float32, bfloat16 or float16, any strides.
    pattern: who sees whom (arXiv 2412.16112, section 3.2); the queries may be a band of the image's rows.
    scale: what the scores are multiplied by; None is 1/sqrt(head_dim). See `clear_core.scale`.
    pooled: down-sampled keys and values; their number is part of the pattern.
    mask: over text, image and references, broadcastable to [batch, heads, queries, keys]; True or an
        additive 0 lets a query see a key, False or -inf hides it. Applied on top of the window.
    backend: "auto", or the name of one.
    return_lse: also return each query's log-sum-exp, to merge partial results with `softmax.merge`.
    budget: bytes of temporary memory the backend may take for what it gathers. The least is one tile.

    Returns out [batch, queries, heads * head_dim] and lse (float32 [batch, heads, queries]) or None.
    Raises ValueError for tensors that do not fit the pattern, BackendError when no backend can run it.
    """
    call = AttentionCall(
        query,
        key,
        value,
        pattern,
        scale=1 / sqrt(query.shape[-1]) if scale is None else scale,
        pooled=pooled,
        mask=mask,
        return_lse=return_lse,
        budget=budget,
    )
    return choose_backend(call, backend).backend.run(call)
