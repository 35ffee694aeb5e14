"""Text queries, which attend to every token: PyTorch's own dense kernels, for every backend with tiles."""

from __future__ import annotations

import torch

from ..call import AttentionCall, AttentionResult
from ..softmax import dense_attention


def empty_result(call: AttentionCall) -> AttentionResult:
    """Uninitialised memory for the result of a call."""
    tokens, device = call.pattern.query_tokens, call.query.device
    out = torch.empty(call.batch, tokens, call.heads * call.head_dim, device=device, dtype=call.query.dtype)
    if not call.return_lse:
        return AttentionResult(out, None)
    return AttentionResult(out, torch.empty(call.batch, call.heads, tokens, device=device, dtype=torch.float32))


def attend_text(call: AttentionCall, result: AttentionResult) -> None:
    """Compute the text queries of a call into its result."""
    text = call.pattern.query_slices.text
    if text.stop == 0:
        return
    query, bias = call.query[:, :, text], call.mask_bias(text)
    part = dense_attention(
        query, call.key, call.value, call.scale, bias, return_lse=call.return_lse, budget=call.budget
    )
    result.out[:, text].unflatten(2, (call.heads, -1)).copy_(part.out.transpose(1, 2))
    if result.lse is not None and part.lse is not None:
        result.lse[:, :, text] = part.lse
