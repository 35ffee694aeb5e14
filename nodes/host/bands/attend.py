"""Attention of a forward that runs in bands: the arithmetic that `clear_core.bands.workers` ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.attention import local_attention
from ....clear_core.bands.workers import Anchor, Part, Worker
from ....clear_core.call import AttentionResult, as_bias
from ....clear_core.layout import Band, Grid, TokenLayout
from ....clear_core.pattern import LocalPattern
from ....clear_core.pooling import Pooled, pool_key_value
from ....clear_core.scale import softmax_scale
from ....clear_core.softmax import dense_attention
from ...options.clear import ClearSettings
from ..attention_call import Frame, Pooling, block_of, full_mask, shaped, unknown_arguments
from ..retry import with_less_memory
from ..run_log import RunReport

_BUDGET = 64 * 2**20  # bytes gathered at a time: bands are for those who are short of memory


@dataclass(frozen=True, slots=True, eq=False)
class BandStep:
    """In transformer_options of one worker's forward. mask: the whole sequence's, as the model was given it."""

    worker: Anchor | Worker
    mask: Tensor | None


def attend_in_bands(
    settings: ClearSettings,
    pooling: Pooling | None,
    report: RunReport,
    frame: Frame,
    step: BandStep,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """One layer of one worker. What cannot be cut is refused: half an image cannot fall back to dense alone."""
    odd = unknown_arguments(args, kwargs)
    if odd or not kwargs.get("skip_reshape") or q.ndim != 4 or q.shape != k.shape:
        raise ValueError(f"CLEAR cannot cut this model into bands: {odd or 'its attention is not FLUX.1 attention'}.")
    block = block_of(kwargs["transformer_options"])
    asked = settings.left_dense(block, active=frame.active)
    attend = _Parts(settings, asked, report, full_mask(step.mask))
    worker = step.worker
    if isinstance(worker, Anchor):
        references = sum(grid.tokens for grid in frame.references)
        layout = TokenLayout(q.shape[2] - 1 - references, frame.image, frame.references)
        return shaped(worker.attend(q, k, v, layout, attend), heads, kwargs)
    weight = None if pooling is None or asked else pooling(block)

    def pool(key: Tensor, value: Tensor, rows: Band) -> tuple[Tensor, Tensor]:
        assert weight is not None
        pooled = pool_key_value(key, value, Grid(len(rows), frame.image.width), weight)
        return pooled.key, pooled.value

    return shaped(worker.attend(q, k, v, attend, None if weight is None else pool), heads, kwargs)


class _Parts:
    """Computes parts of a layer through the window, or dense where that was asked for; asked: "" or why."""

    def __init__(self, settings: ClearSettings, asked: str, report: RunReport, mask: Tensor | None) -> None:
        self._settings, self._asked, self._report, self._mask = settings, asked, report, mask

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        /,
        part: Part,
        layout: TokenLayout,
        pooled: tuple[Tensor, Tensor] | None,
        *,
        return_lse: bool,
    ) -> AttentionResult:
        # Long steps at high resolution: look at every part whether the person has cancelled.
        comfy.model_management.throw_exception_if_processing_interrupted()
        settings = self._settings
        mask = _cut(self._mask, part, layout)
        cells = None if pooled is None else Pooled(*pooled)
        pattern = LocalPattern(
            layout,
            settings.window,
            part.query_rows,
            part.key_rows,
            text_queries=part.query_anchors,
            reference_queries=part.query_anchors,
            text_keys=part.key_anchors,
            reference_keys=part.key_anchors,
            references=settings.references,
            pooled=0 if cells is None else cells.tokens,
        )
        factor = 1 if self._asked else settings.down_factor
        scale = softmax_scale(query.shape[-1], layout.tokens, proportional=settings.proportional, down_factor=factor)
        if self._asked:
            self._report.dense(f"{self._asked}, in bands", asked=True)
        if self._asked or not pattern.query_grids:
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
                pooled=cells,
                mask=mask,
                backend=settings.backend,
                return_lse=return_lse,
                budget=budget,
            ),
            _BUDGET,
            self._report,
        )
        if part.query_rows is not None:
            self._report.local(f"{choice.backend.name} in bands ({layout}; {choice.reason})")
        return AttentionResult(out, lse)


def _cut(mask: Tensor | None, part: Part, layout: TokenLayout) -> Tensor | None:
    """The caller's mask, [batch, heads, queries, keys] of the whole sequence, for the tokens of a part."""
    if mask is None:
        return None
    for dim, rows, anchors in ((2, part.query_rows, part.query_anchors), (3, part.key_rows, part.key_anchors)):
        if mask.shape[dim] > 1:
            mask = mask.index_select(dim, _tokens(rows, anchors, layout).to(mask.device))
    return mask


def _tokens(rows: Band | None, anchors: bool, layout: TokenLayout) -> Tensor:
    """The places in the whole sequence of a part's queries or keys."""
    text, width, end = layout.text, layout.image.width, layout.text + layout.image.tokens
    image = torch.arange(0) if rows is None else torch.arange(text + rows.start * width, text + rows.stop * width)
    if not anchors:
        return image
    return torch.cat((torch.arange(text), image, torch.arange(end, layout.tokens)))
