"""CLEAR's local attention: the one entry point over all backends."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from torch import Tensor

from .backends import AUTO, Choice, choose_backend
from .call import DEFAULT_BUDGET, AttentionCall
from .pattern import LocalPattern
from .pooling import Pooled


class LocalAttention(NamedTuple):
    """out: [batch, queries, heads * head_dim] in the query's dtype.

    lse: float32 [batch, heads, queries], the natural log of the sum of exp(score); None without `return_lse`.
    choice: the backend that computed it, and why this one.
    """

    out: Tensor
    lse: Tensor | None
    choice: Choice


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
) -> LocalAttention:
    """Softmax attention in which each image query sees its window, the text and the down-sampled tokens.

    A fully masked row (every key hidden by the mask, or no key in a band) gives 0 and log-sum-exp -inf, from every
    backend. Finite tensors give no NaN while the scores fit in float32, as those of float16 always do.

    query: [batch, heads, queries, head_dim] after RoPE, ordered text, image rows, references, as many as
        `pattern` says. key, value: the same for the keys. float32, bfloat16 or float16, any strides.
    pattern: which queries see which keys (arXiv 2412.16112, section 3.2); the queries may be a band of the image's
        rows.
    scale: factor on the scores q.k; None is 1/sqrt(head_dim). See `clear_core.scale`.
    pooled: down-sampled keys and values; their number is part of the pattern.
    mask: over text, image and references, broadcastable to [batch, heads, queries, keys]; True or an
        additive 0 lets a query see a key, False or -inf hides it. Applied on top of the window.
    backend: "auto", or the name of a backend.
    return_lse: also return each query's log-sum-exp, to merge partial results with `softmax.merge`.
    budget: bytes of temporary memory the backend may use for gathered keys and values; at least one tile is.

    Raises CallError (a ValueError) for tensors that do not fit the pattern, ValueError for an unknown backend,
    BackendError when no backend, or not the named one, can run the call.
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
    choice = choose_backend(call, backend)
    return LocalAttention(*choice.backend.run(call), choice)
