"""Gathered tiles through PyTorch's scaled_dot_product_attention: any device, no compiler, linear cost.

Strategy: cut the image into square tiles; a tile's keys are what all queries share (text, down-sampled
tokens, references seen whole) and the bounding box of its windows. Tiles that look alike are batched
into one call, which takes one mask for all of them. The boxes are copied into a buffer, tile after
tile, never more than the call's memory budget at a time, so memory does not grow with the image.
Text queries see everything and go through PyTorch's dense kernels.

Constraints: a mask together with down-sampled tokens (no backend can).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...cache import BoundedCache
from ...call import AttentionCall, AttentionResult, as_bias
from ...layout import GridTokens
from ...pattern import LocalPattern
from ...softmax import dense_attention
from ..base import pooled_mask_refusal
from .tiles import AxisRun, KeySpan, TileGroup, tile_groups

_TILE = 16  # tokens a side; measured fastest of 8, 12, 16, 24, 32 on a 2-core CPU at r = 8
_CPU_BLOCK = 16 * 2**20  # bytes gathered at a time on a CPU: what stays in its caches measured fastest
_ALIGN = 16  # CUDA's kernels want a mask whose rows start at multiples of this many elements


class SdpaBackend:
    name = "sdpa"
    summary = "PyTorch's own kernels over gathered tiles: runs everywhere, needs no Triton"

    def __init__(self) -> None:
        self._plans: BoundedCache[LocalPattern, tuple[tuple[TileGroup, ...], ...]] = BoundedCache(16)

    def unavailable(self) -> str | None:
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        return pooled_mask_refusal(call)

    def executed_pairs(self, call: AttentionCall) -> int:
        pattern = call.pattern
        boxes = sum(
            group.tiles * group.queries * sum(group.box_tokens) for groups in self._plan(call) for group in groups
        )
        text = pattern.text_query_tokens
        return text * pattern.key_tokens + (pattern.query_tokens - text) * pattern.shared_keys + boxes

    def run(self, call: AttentionCall) -> AttentionResult:
        return _Run(call).whole(self._plan(call))

    def _plan(self, call: AttentionCall) -> tuple[tuple[TileGroup, ...], ...]:
        return self._plans.get(call.pattern, lambda: tile_groups(call.pattern, (_TILE, _TILE)))


class _Run:
    """The views and buffers of one call."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call
        pattern = call.pattern
        query = call.query
        self.out = torch.empty(
            call.batch, pattern.query_tokens, call.heads, call.head_dim, device=query.device, dtype=query.dtype
        )
        self.lse = (
            torch.empty(call.batch, call.heads, pattern.query_tokens, device=query.device, dtype=torch.float32)
            if call.return_lse
            else None
        )
        pooled_key = () if call.pooled is None else (call.pooled.key,)
        pooled_value = () if call.pooled is None else (call.pooled.value,)
        text, references = pattern.key_slices.text, pattern.shared_references
        # What every tile sees. Down-sampled tokens stand between, and never together with a mask.
        self.shared_key = torch.cat((call.key[:, :, text], *pooled_key, call.key[:, :, references]), dim=2)
        self.shared_value = torch.cat((call.value[:, :, text], *pooled_value, call.value[:, :, references]), dim=2)

    def whole(self, plan: tuple[tuple[TileGroup, ...], ...]) -> AttentionResult:
        self._text()
        for queries, groups in zip(self.call.pattern.query_grids, plan, strict=True):
            for group in groups:
                self._group(queries, group)
        return AttentionResult(self.out.flatten(2, 3), self.lse)

    def _text(self) -> None:
        call, text = self.call, self.call.pattern.query_slices.text
        if text.stop == 0:
            return
        out, lse = dense_attention(
            call.query[:, :, text],
            call.key,
            call.value,
            call.scale,
            call.masked(text),
            return_lse=call.return_lse,
            budget=call.budget,
        )
        self.out[:, text] = out.transpose(1, 2)
        if self.lse is not None and lse is not None:
            self.lse[:, :, text] = lse

    def _group(self, queries: GridTokens, group: TileGroup) -> None:
        call = self.call
        keys = self.shared_key.shape[2] + sum(group.box_tokens)
        tiles = _blocks(_grid_view(call.query, queries), group)
        out = _blocks(_grid_view(self.out.transpose(1, 2), queries), group)
        lse = None
        if self.lse is not None:
            lse = _blocks(_grid_view(self.lse[..., None], queries), group)
        if keys == 0:
            out.zero_()
            if lse is not None:
                lse.fill_(-torch.inf)
            return
        key_boxes, value_boxes = self._boxes(call.key, group), self._boxes(call.value, group)
        bias = self._bias(group, keys)
        indices = _Indices(self, queries, group) if call.mask is not None else None
        for rows, columns, heads in self._parts(group, keys):
            part = (slice(None), heads, rows, columns)
            extra = None if indices is None else indices.bias(rows, columns, heads)
            result, part_lse = self._attend(
                tiles[part],
                (self.shared_key[:, heads], [box[part] for box in key_boxes]),
                (self.shared_value[:, heads], [box[part] for box in value_boxes]),
                bias if extra is None else extra if bias is None else extra + bias,
            )
            # [batch * tiles, heads, queries, ...] back to the blocks of the image.
            block = out[part].movedim(1, 3)
            block.copy_(result.view(block.shape))
            if lse is not None and part_lse is not None:
                block = lse[part].movedim(1, 3)
                block.copy_(part_lse.view(block.shape))

    def _attend(
        self,
        query: Tensor,
        key: tuple[Tensor, list[Tensor]],
        value: tuple[Tensor, list[Tensor]],
        bias: Tensor | None,
    ) -> AttentionResult:
        """Gather and attend. A function of its own so that one part's copies are gone before the next one's."""
        return dense_attention(
            query.movedim(1, 3).flatten(4, 5).flatten(0, 2),
            self._gather(*key, query.shape[:4]),
            self._gather(*value, query.shape[:4]),
            self.call.scale,
            bias,
            return_lse=self.call.return_lse,
            budget=self.call.budget,
            all_see=self.call.all_see,
        )

    def _boxes(self, tokens: Tensor, group: TileGroup) -> list[Tensor]:
        """Views of each windowed key grid's boxes: [batch, heads, tile rows, tile columns, kh, kw, head_dim]."""
        boxes = []
        grids = self.call.pattern.windowed_key_grids
        for keys, y, x in zip(grids, group.rows.keys, group.columns.keys, strict=True):
            grid = _grid_view(tokens, keys)
            boxes.append(_windows(_windows(grid, 2, y, group.rows), 3, x, group.columns).movedim(4, -1))
        return boxes

    def _gather(self, shared: Tensor, boxes: list[Tensor], tiles: tuple[int, ...]) -> Tensor:
        """Copy what all tiles share and each tile's boxes side by side: [batch * tiles, heads, keys, head_dim]."""
        batch, heads, rows, columns = tiles
        count = shared.shape[2]
        keys = count + sum(box.shape[4] * box.shape[5] for box in boxes)
        buffer = shared.new_empty(batch, rows, columns, heads, keys, shared.shape[3])
        buffer[..., :count, :] = shared[:, None, None]
        for box in boxes:
            size = box.shape[4] * box.shape[5]
            buffer[..., count : count + size, :].unflatten(4, box.shape[4:6]).copy_(box.movedim(1, 3))
            count += size
        return buffer.flatten(0, 2)

    def _bias(self, group: TileGroup, keys: int) -> Tensor | None:
        """The window as an additive bias [1, 1, queries, keys]; None where the boxes are seen whole."""
        query = self.call.query
        window = self.call.pattern.window
        if group.fully_visible(window):
            return None
        visible = group.mask(window, query.device)
        bias = query.new_zeros(group.queries, -(-keys // _ALIGN) * _ALIGN)[:, :keys]
        bias[:, keys - visible.shape[1] :].masked_fill_(~visible, -torch.inf)
        return bias[None, None]

    def _parts(self, group: TileGroup, keys: int) -> list[tuple[slice, slice, slice]]:
        """Cut tile rows, tile columns and heads so that each part's copies stay within the budget."""
        call = self.call
        per_tile = call.query.element_size() * call.head_dim * 2 * (keys + group.queries)
        if call.return_lse or call.mask is not None:
            per_tile += 8 * group.queries * keys
        budget = min(call.budget, _CPU_BLOCK) if call.query.device.type == "cpu" else call.budget
        bias = call.query.element_size() * group.queries * keys  # one for all tiles
        fit = max(1, (budget - bias) // max(1, per_tile * call.batch))
        columns = min(group.columns.count, fit)
        rows = min(group.rows.count, fit // columns)
        heads = min(call.heads, fit // (columns * rows))
        return [
            (slice(y, y + rows), slice(x, x + columns), slice(head, head + heads))
            for head in range(0, call.heads, heads)
            for y in range(0, group.rows.count, rows)
            for x in range(0, group.columns.count, columns)
        ]


class _Indices:
    """Which tokens each tile of a group asks for, to cut the caller's mask the same way."""

    def __init__(self, run: _Run, queries: GridTokens, group: TileGroup) -> None:
        self.call = run.call
        pattern, device = run.call.pattern, run.call.query.device
        every_query = torch.arange(pattern.query_tokens, device=device)[None, None, :, None]
        self.queries = _blocks(_grid_view(every_query, queries), group)[0, 0, ..., 0]
        every_key = torch.arange(pattern.key_tokens, device=device)
        self.shared = torch.cat((every_key[pattern.key_slices.text], every_key[pattern.shared_references]))
        self.boxes = [box[0, 0, ..., 0] for box in run._boxes(every_key[None, None, :, None], group)]

    def bias(self, rows: slice, columns: slice, heads: slice) -> Tensor:
        """The mask for some tiles as an additive bias [batch or 1 * tiles, heads or 1, queries, keys]."""
        queries = self.queries[rows, columns].flatten(2, 3)
        boxes = [box[rows, columns].flatten(2, 3) for box in self.boxes]
        tiles = queries.shape[:2]
        keys = torch.cat((self.shared.expand(*tiles, -1), *boxes), dim=-1)
        mask = self.call.mask
        assert mask is not None
        if mask.shape[1] > 1:
            mask = mask[:, heads]
        queries = queries if mask.shape[2] > 1 else torch.zeros_like(queries)
        keys = keys if mask.shape[3] > 1 else torch.zeros_like(keys)
        part = mask[:, :, queries[..., :, None], keys[..., None, :]].movedim(1, 3)
        part = part.expand(self.call.batch, -1, -1, -1, -1, -1).flatten(0, 2)
        return as_bias(part, self.call.query.dtype)


def _grid_view(tokens: Tensor, grid: GridTokens) -> Tensor:
    """One grid's tokens as [batch, heads, rows, columns, channels], without copying."""
    return tokens[:, :, grid.span].unflatten(2, grid.shape)


def _blocks(image: Tensor, group: TileGroup) -> Tensor:
    """A view of the group's tiles: [batch, heads, tile rows, tile columns, th, tw, channels]."""
    y, x = group.rows, group.columns
    part = image[:, :, y.start : y.stop, x.start : x.stop]
    return part.unflatten(3, (x.count, x.length)).unflatten(2, (y.count, y.length)).movedim(4, 3)


def _windows(image: Tensor, dim: int, span: KeySpan, run: AxisRun) -> Tensor:
    """Overlapping windows along one dimension as a view: their number in its place, their length last."""
    stop = span.start + span.step * (run.count - 1) + span.length
    part = image.narrow(dim, span.start, stop - span.start)
    if run.count > 1 and span.step == 0:
        return part.unsqueeze(dim).expand(*part.shape[:dim], run.count, *part.shape[dim:]).movedim(dim + 1, -1)
    return part.unfold(dim, span.length, max(1, span.step))
