"""Gathered tiles through PyTorch's scaled_dot_product_attention: any device, no compiler, linear cost.

Strategy: cut the image into square tiles of queries. The keys of a tile are the shared ones (text, down-sampled
tokens, references seen completely) and the bounding box of its windows. Tiles of the same geometry form a group
(`tiles`) that is one batched call with one mask. The boxes are copied side by side into a buffer of at most the
call's memory budget, part by part, so memory does not grow with the image. Text queries attend to every token and
go through PyTorch's dense kernels.

Constraints: no mask together with down-sampled tokens, as in every backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...cache import BoundedCache
from ...call import AttentionCall, AttentionResult, as_bias
from ...layout import GridTokens
from ...pattern import LocalPattern
from ...softmax import dense_attention, dense_attention_unchecked
from ..base import pooled_mask_refusal, window_bias
from ..geometry import Geometries, Geometry
from ..on_device import DeviceCache, tensor_bytes
from ..text import attend_text, empty_result
from .gather import GatherBuffer
from .tiles import AxisRun, KeySpan, TileGroup, tile_groups

_TILE = 16  # tokens a side; measured fastest of 8, 12, 16, 24, 32 on a 2-core CPU at r = 8
_CPU_BLOCK = 16 * 2**20  # bytes gathered at a time on a CPU: what fits its caches measured fastest
_Plan = tuple[tuple[TileGroup, ...], ...]
_PLANS = 256  # a plan takes some 10 kB
_BIAS_BYTES = 32 * 2**20  # of window masks, which all bands and layers share


class SdpaBackend:
    name = "sdpa"
    summary = "PyTorch's own kernels over gathered tiles: runs everywhere, needs no Triton"
    differentiable = True

    def __init__(self, tile: int = _TILE) -> None:
        """tile: tokens a side; another one is for benchmarks."""
        self.tile = tile
        self.plans: BoundedCache[Geometry, _Plan] = BoundedCache(_PLANS)
        self.biases: DeviceCache[Tensor] = DeviceCache(_BIAS_BYTES, tensor_bytes)
        self._geometries = Geometries()
        self._executed: BoundedCache[LocalPattern, int] = BoundedCache(1024, as_key=LocalPattern.as_key)

    def unavailable(self) -> str | None:
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        return pooled_mask_refusal(call)

    def remark(self, call: AttentionCall) -> str | None:
        return None

    def executed_pairs(self, call: AttentionCall) -> int:
        pattern = call.pattern
        return pattern.remembered(
            self._executed, lambda: self._executed.get(pattern, lambda: self._count_pairs(pattern))
        )

    def run(self, call: AttentionCall) -> AttentionResult:
        result = empty_result(call)
        attend_text(call, result)
        shared = _shared_keys(call)
        for queries, groups in zip(call.pattern.query_grids, self.plan(call), strict=True):
            for group in groups:
                _GroupAttention(call, shared, queries, group, self.biases).run(result)
        return result

    def plan(self, call: AttentionCall) -> _Plan:
        """For each query grid, its tiles in groups."""
        return self._plan(call.pattern)

    def _count_pairs(self, pattern: LocalPattern) -> int:
        groups = [group for groups in self._plan(pattern) for group in groups]
        boxes = sum(group.tiles * group.queries * sum(group.box_tokens) for group in groups)
        text = pattern.text_query_tokens
        return text * pattern.key_tokens + (pattern.query_tokens - text) * pattern.shared_keys + boxes

    def _plan(self, pattern: LocalPattern) -> _Plan:
        return pattern.remembered(
            self.plans,
            lambda: self.plans.get(self._geometries.of(pattern), lambda: tile_groups(pattern, (self.tile, self.tile))),
        )


class _KeyValue(NamedTuple):
    """Keys and values, each [batch, heads, tokens, head_dim]."""

    key: Tensor
    value: Tensor


class _Part(NamedTuple):
    """What is gathered at a time: some heads of some tiles of a group."""

    heads: slice
    rows: slice
    columns: slice

    @property
    def index(self) -> tuple[slice, slice, slice, slice]:
        """Of a tensor [batch, heads, tile rows, tile columns, ...]."""
        return slice(None), self.heads, self.rows, self.columns


class _GroupAttention:
    """One group of tiles of one query grid: views of its queries and boxes, its masks, and the loop over its parts."""

    def __init__(
        self,
        call: AttentionCall,
        shared: _KeyValue,
        queries: GridTokens,
        group: TileGroup,
        biases: DeviceCache[Tensor],
    ) -> None:
        """biases: window masks of earlier calls."""
        self.call, self.shared, self.grid, self.group, self.biases = call, shared, queries, group, biases
        self.keys = shared.key.shape[2] + sum(group.box_tokens)

    def run(self, result: AttentionResult) -> None:
        """Compute the group's tiles into the call's result."""
        out = self._tiles(result.out.unflatten(2, (self.call.heads, -1)).transpose(1, 2))
        lse = None if result.lse is None else self._tiles(result.lse[..., None])
        if self.keys == 0:
            out.zero_()
            if lse is not None:
                lse.fill_(-torch.inf)
            return
        queries = self._tiles(self.call.query)
        key_boxes, value_boxes = _boxes(self.call.key, self), _boxes(self.call.value, self)
        window, mask = self._window_bias(), None if self.call.mask is None else _TiledMask(self)
        keys, values = GatherBuffer(self.shared.key), GatherBuffer(self.shared.value)
        for part in self._parts():
            bias = _add_biases(window, None if mask is None else mask.bias(part))
            query = queries[part.index]
            tiles = query.shape[2], query.shape[3]
            # Without names of their own, which would keep a part of another shape alive while the next one is made.
            attended = self._attend(
                query,
                keys.fill(part.heads, tiles, [box[part.index] for box in key_boxes]),
                values.fill(part.heads, tiles, [box[part.index] for box in value_boxes]),
                bias,
            )
            _scatter(attended.out, out[part.index])
            if lse is not None and attended.lse is not None:
                _scatter(attended.lse, lse[part.index])

    def _tiles(self, tokens: Tensor) -> Tensor:
        """A view of the group's tiles: [batch, heads, tile rows, tile columns, rows, columns, channels].

        tokens: [batch, heads, queries, channels].
        """
        y, x = self.group.rows, self.group.columns
        image = _grid_view(tokens, self.grid)[:, :, y.start : y.stop, x.start : x.stop]
        return image.unflatten(3, (x.count, x.length)).unflatten(2, (y.count, y.length)).movedim(4, 3)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> AttentionResult:
        """Attend one part. A function of its own so that the copy of its queries is gone before the next one's."""
        call = self.call
        attend = dense_attention if call.may_mask_rows else dense_attention_unchecked
        return attend(
            query.movedim(1, 3).flatten(4, 5).flatten(0, 2),
            key,
            value,
            call.scale,
            bias,
            return_lse=call.return_lse,
            budget=call.budget,
        )

    def _window_bias(self) -> Tensor | None:
        """The window as an additive bias [1, 1, queries, keys]; None where every query sees the complete boxes."""
        query, window, group = self.call.query, self.call.pattern.window, self.group
        if group.fully_visible(window):
            return None
        key = (group, window, self.keys, query.dtype)
        return self.biases.get(
            key, query, lambda: window_bias(group.mask(window, query.device), self.keys, query.dtype)
        )

    def _parts(self) -> Iterator[_Part]:
        """Cut tile rows, tile columns and heads so that the copies of each part stay within the budget."""
        call, group = self.call, self.group
        per_tile = call.query.element_size() * call.head_dim * 2 * (self.keys + group.queries)
        if call.return_lse or call.mask is not None:
            per_tile += 8 * group.queries * self.keys
        budget = min(call.budget, _CPU_BLOCK) if call.query.device.type == "cpu" else call.budget
        bias = call.query.element_size() * group.queries * self.keys  # one for all tiles
        fit = max(1, (budget - bias) // max(1, per_tile * call.batch))
        columns = min(group.columns.count, fit)
        rows = min(group.rows.count, fit // columns)
        heads = min(call.heads, fit // (columns * rows))
        for head in range(0, call.heads, heads):
            for y in range(0, group.rows.count, rows):
                for x in range(0, group.columns.count, columns):
                    yield _Part(slice(head, head + heads), slice(y, y + rows), slice(x, x + columns))


class _TiledMask:
    """The caller's mask, indexed by the tokens of each tile and of its keys."""

    def __init__(self, group: _GroupAttention) -> None:
        assert group.call.mask is not None
        self.mask, self.batch, self.dtype = group.call.mask, group.call.batch, group.call.query.dtype
        pattern, device = group.call.pattern, group.call.query.device
        queries = torch.arange(pattern.query_tokens, device=device)
        keys = torch.arange(pattern.key_tokens, device=device)
        self.queries = group._tiles(queries[None, None, :, None])[0, 0, ..., 0]
        self.shared_keys = torch.cat((keys[pattern.key_slices.text], keys[pattern.shared_references]))
        self.boxes = [box[0, 0, ..., 0] for box in _boxes(keys[None, None, :, None], group)]

    def bias(self, part: _Part) -> Tensor:
        """The mask of a part as an additive bias [batch * tiles, heads or 1, queries, keys]."""
        queries = self.queries[part.rows, part.columns].flatten(2, 3)
        boxes = [box[part.rows, part.columns].flatten(2, 3) for box in self.boxes]
        keys = torch.cat((self.shared_keys.expand(*queries.shape[:2], -1), *boxes), dim=-1)
        mask = self.mask[:, part.heads] if self.mask.shape[1] > 1 else self.mask
        queries = queries if mask.shape[2] > 1 else torch.zeros_like(queries)
        keys = keys if mask.shape[3] > 1 else torch.zeros_like(keys)
        tiled = mask[:, :, queries[..., :, None], keys[..., None, :]].movedim(1, 3)
        return as_bias(tiled.expand(self.batch, -1, -1, -1, -1, -1).flatten(0, 2), self.dtype)


def _shared_keys(call: AttentionCall) -> _KeyValue:
    """Keys and values that every tile sees. Down-sampled tokens stand between, and never together with a mask."""
    text, references = call.pattern.key_slices.text, call.pattern.shared_references
    pooled_key = () if call.pooled is None else (call.pooled.key,)
    pooled_value = () if call.pooled is None else (call.pooled.value,)
    return _KeyValue(
        torch.cat((call.key[:, :, text], *pooled_key, call.key[:, :, references]), dim=2),
        torch.cat((call.value[:, :, text], *pooled_value, call.value[:, :, references]), dim=2),
    )


def _add_biases(window: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The sum of two additive biases, either of which may be absent."""
    if window is None:
        return mask
    return window if mask is None else mask + window


def _scatter(result: Tensor, tiles: Tensor) -> None:
    """Copy a result [batch * tiles, heads, queries, ...] to its tiles, a view made by `_GroupAttention._tiles`."""
    tiles = tiles.movedim(1, 3)
    tiles.copy_(result.view(tiles.shape))


def _boxes(tokens: Tensor, group: _GroupAttention) -> list[Tensor]:
    """Views of the boxes in each windowed key grid: [batch, heads, tile rows, tile columns, rows, columns, channels].

    tokens: [batch, heads, keys, channels].
    """
    rows, columns = group.group.rows, group.group.columns
    return [
        _windows(_windows(_grid_view(tokens, keys), 2, y, rows), 3, x, columns).movedim(4, -1)
        for keys, y, x in zip(group.call.pattern.windowed_key_grids, rows.keys, columns.keys, strict=True)
    ]


def _grid_view(tokens: Tensor, grid: GridTokens) -> Tensor:
    """One grid's tokens as [batch, heads, rows, columns, channels], without copying."""
    return tokens[:, :, grid.span].unflatten(2, grid.shape)


def _windows(image: Tensor, dim: int, span: KeySpan, run: AxisRun) -> Tensor:
    """Overlapping windows along a dimension, as a view: `dim` becomes their number, a new last one their length."""
    stop = span.start + span.step * (run.count - 1) + span.length
    part = image.narrow(dim, span.start, stop - span.start)
    if run.count > 1 and span.step == 0:
        return part.unsqueeze(dim).expand(*part.shape[:dim], run.count, *part.shape[dim:]).movedim(dim + 1, -1)
    return part.unfold(dim, span.length, max(1, span.step))
