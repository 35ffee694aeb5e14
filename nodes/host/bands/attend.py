"""Attention of a forward that runs in bands: the arithmetic behind `clear_core.bands.workers`."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.attention import local_attention
from ....clear_core.bands.workers import BandWorker, Pool, ReplicatedWorker
from ....clear_core.call import AttentionResult, as_bias
from ....clear_core.layout import Band, Grid, TokenLayout
from ....clear_core.pattern import LocalPattern
from ....clear_core.pooling import Pooled, pool_key_value
from ....clear_core.scale import softmax_scale
from ....clear_core.softmax import dense_attention
from ...options.clear import ClearSettings
from ..attention_call import Frame, HostAttentionCall, Pooling, full_mask
from ..retry import with_less_memory
from ..run_log import RunLog

_BUDGET = 64 * 2**20  # bytes gathered at a time: bands are for those who are short of memory


@dataclass(frozen=True, slots=True, eq=False)
class BandStep:
    """In transformer_options of one worker's forward. mask: the complete sequence's, on the worker's device."""

    worker: ReplicatedWorker | BandWorker
    mask: Tensor | None


def attend_in_bands(
    settings: ClearSettings, pooling: Pooling | None, run_log: RunLog, call: HostAttentionCall, step: BandStep
) -> Tensor:
    """One layer of one worker. What cannot be cut is refused: part of an image cannot fall back to dense alone."""
    frame, worker = call.frame, step.worker
    if frame is None or call.unknown or not call.is_joint:
        raise ValueError(
            f"CLEAR cannot cut this model into bands: {call.unknown or 'its attention is not FLUX.1 attention'}."
        )
    dense = settings.left_dense(call.block, active=frame.active)
    compute = _Compute(settings, dense, run_log, full_mask(step.mask))
    if isinstance(worker, ReplicatedWorker):
        layout = _complete_layout(call, frame)
        pattern = LocalPattern.whole(layout, settings.window, references=settings.references)
        return call.shaped(worker.attend(call.query, call.key, call.value, pattern, compute))
    weight = None if pooling is None or dense else pooling(call.block)
    pool = None if weight is None else _pool(frame.image.width, weight)
    return call.shaped(worker.attend(call.query, call.key, call.value, compute, pool))


def _complete_layout(call: HostAttentionCall, frame: Frame) -> TokenLayout:
    """The layout of the complete sequence, from a call in which one token stands in for the image."""
    return TokenLayout(call.text_tokens(frame) + frame.image.tokens - 1, frame.image, frame.references)


def _pool(width: int, weight: Tensor) -> Pool:
    return lambda key, value, rows: pool_key_value(key, value, Grid(len(rows), width), weight)


class _Compute:
    """Computes a worker's attention through the window, or dense. dense: "" or why the layer is left dense."""

    def __init__(self, settings: ClearSettings, dense: str, run_log: RunLog, mask: Tensor | None) -> None:
        self._settings, self._dense, self._run_log, self._mask = settings, dense, run_log, mask

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        /,
        pattern: LocalPattern,
        pooled: Pooled | None,
        *,
        return_lse: bool,
    ) -> AttentionResult:
        # Steps at high resolution are long: look for a cancelled prompt in every band.
        comfy.model_management.throw_exception_if_processing_interrupted()
        settings, layout = self._settings, pattern.layout
        mask = _cut(self._mask, pattern)
        factor = 1 if self._dense else settings.down_factor
        proportional = settings.proportional_at(layout.image)
        scale = softmax_scale(query.shape[-1], layout.tokens, proportional=proportional, down_factor=factor)
        if self._dense:
            self._run_log.dense(f"{self._dense}, in bands", asked=True)
        if self._dense or not pattern.query_grids:
            bias = None if mask is None else as_bias(mask, query.dtype)
            out, lse = dense_attention(query, key, value, scale, bias, return_lse=return_lse, budget=_BUDGET)
            return AttentionResult(out.transpose(1, 2).flatten(2), lse)
        out, lse, choice = with_less_memory(
            lambda budget: local_attention(
                query,
                key,
                value,
                pattern,
                scale=scale,
                pooled=pooled,
                mask=mask,
                backend=settings.backend,
                return_lse=return_lse,
                budget=budget,
            ),
            _BUDGET,
            self._run_log,
        )
        if pattern.query_rows is not None:
            self._run_log.local(f"{choice.backend.name} in bands ({layout}; {choice.reason})")
        return AttentionResult(out, lse)


def _cut(mask: Tensor | None, pattern: LocalPattern) -> Tensor | None:
    """The caller's mask, [batch, heads, queries, keys] of the complete sequence, for a pattern's queries and keys."""
    if mask is None:
        return None
    if mask.shape[2] > 1:
        queries = _tokens(pattern.layout, pattern.query_rows, mask.device, replicated=pattern.text_queries)
        mask = mask.index_select(2, queries)
    if mask.shape[3] > 1:
        keys = _tokens(pattern.layout, pattern.key_rows, mask.device, replicated=pattern.text_keys)
        mask = mask.index_select(3, keys)
    return mask


def _tokens(layout: TokenLayout, rows: Band | None, device: torch.device, *, replicated: bool) -> Tensor:
    """Which tokens of the complete sequence a pattern's queries or keys are, int64 [tokens] on a device.

    replicated: whether text and references, which go together in bands, are among them.
    """
    text, width, end = layout.text, layout.image.width, layout.text + layout.image.tokens
    spans = [] if rows is None else [(text + rows.start * width, text + rows.stop * width)]
    if replicated:
        spans = [(0, text), *spans, (end, layout.tokens)]
    # Made where they are read: an upload from pageable memory would stop the stream in every layer.
    parts = [torch.arange(start, stop, device=device) for start, stop in spans]
    return torch.cat(parts) if parts else torch.arange(0, device=device)
