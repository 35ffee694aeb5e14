"""Text queries, which attend to every token: PyTorch's own dense kernels, for every backend with tiles.

512 text tokens of 24 heads are 96 programs, fewer than a large GPU has multiprocessors: the keys are cut into parts
that run side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import AttentionCall, AttentionResult
from ..softmax import dense_attention, split_attention
from .on_device import multiprocessors

_QUERY_BLOCK = 128  # queries of one program in flash kernels for head_dim 128
_WAVES = 2  # programs for each multiprocessor that even out their ends
_MOST_SPLITS = 8
_FEWEST_KEYS = 2048  # of a part: below, merging takes as long as the part


def empty_result(call: AttentionCall) -> AttentionResult:
    """Uninitialised memory for the result of a call."""
    query, tokens = call.query, call.pattern.query_tokens
    out = query.new_empty(call.batch, tokens, call.heads * call.head_dim)
    if not call.return_lse:
        return AttentionResult(out, None)
    return AttentionResult(out, query.new_empty(call.batch, call.heads, tokens, dtype=torch.float32))


def key_splits(blocks: int, multiprocessors: int, keys: int) -> int:
    """Into how many parts the keys are cut so that a GPU is busy; 1 for not at all.

    blocks: of queries, all heads together, which is how many programs a fused kernel has without a cut.
    """
    if blocks >= multiprocessors * _WAVES:
        return 1
    return max(1, min(-(-multiprocessors * _WAVES // max(1, blocks)), _MOST_SPLITS, keys // _FEWEST_KEYS))


def attend_text(call: AttentionCall, result: AttentionResult) -> None:
    """Compute the text queries of a call into its result."""
    text = call.pattern.query_slices.text
    if text.stop == 0:
        return
    part = _attend(call, call.query[:, :, text], call.mask_bias(text))
    result.out[:, text].unflatten(2, (call.heads, -1)).copy_(part.out.transpose(1, 2))
    if result.lse is not None and part.lse is not None:
        result.lse[:, :, text] = part.lse


def _attend(call: AttentionCall, query: Tensor, bias: Tensor | None) -> AttentionResult:
    if bias is None:
        blocks = call.batch * call.heads * -(-query.shape[2] // _QUERY_BLOCK)
        splits = key_splits(blocks, multiprocessors(query.device), call.key.shape[2])
        parts = split_attention(query, call.key, call.value, call.scale, splits) if splits > 1 else None
        if parts is not None:
            return parts
    return dense_attention(
        query, call.key, call.value, call.scale, bias, return_lse=call.return_lse, budget=call.budget
    )
