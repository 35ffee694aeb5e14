"""The workers of a forward in bands: what each does where the model's blocks begin and where they attend.

A worker runs inside the host's own forward. It publishes what others need, pauses, and goes on when its lane's
schedule says so. The arithmetic comes from outside (`ComputeAttention`, `Pool`); here is what goes into it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..call import AttentionResult
from ..layout import Band
from ..pattern import LocalPattern
from ..pooling import Pooled
from ..softmax import RunningMerge
from .exchange import Exchange, LayerExchange, PartialAttention
from .fibers import Fiber
from .schedule import Attend

TextMerge = Literal["exact", "average"]
PausePoint = tuple[str, object]
"""Where a worker pauses: ("block", which) or ("attention", number of the layer)."""


class ComputeAttention(Protocol):
    """Attention of some queries over some keys. Tensors are [batch, heads, tokens, head_dim].

    pattern: which tokens are among them, in its order. pooled: down-sampled keys and values of all image rows, for
    image and reference queries; their number is part of the pattern.
    """

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
    ) -> AttentionResult: ...


Pool = Callable[[Tensor, Tensor, Band], Pooled]
"""Keys and values of a band's rows to their down-sampled ones."""


class Worker:
    """A fiber that pauses where blocks begin and where they attend."""

    def __init__(self, exchange: Exchange, lane: int, text_merge: TextMerge) -> None:
        self.exchange = exchange
        self.lane = lane
        self.text_merge = text_merge
        self.layer = -1
        self._fiber: Fiber[Tensor] | None = None

    def start(self, function: Callable[[], Tensor], name: str) -> Fiber[Tensor]:
        def body(fiber: Fiber[Tensor]) -> Tensor:
            self._fiber = fiber
            return function()

        return Fiber(body, self.exchange.devices[self.lane], name)

    def pause(self, place: PausePoint) -> None:
        assert self._fiber is not None
        self._fiber.pause(place)

    def at_block(self, block: object) -> None:
        """Call where a block begins."""
        self.pause(("block", block))


class ReplicatedWorker(Worker):
    """Text and reference tokens, which every lane gets a copy of. One image token stands in for the image.

    Their queries see all rows: every band computes their partial attention over its own rows, and the parts are
    merged by log-sum-exp, which is exact.
    """

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pattern: LocalPattern, compute: ComputeAttention
    ) -> Tensor:
        """One layer. query, key, value: [batch, heads, text + 1 + references, head_dim] after RoPE.

        pattern: of the complete sequence. Returns [batch, text + 1 + references, channels], 0 for the image token.
        """
        exchange, layout = self.exchange, pattern.layout
        text = layout.text
        self.layer += 1
        own = [torch.cat((x[:, :, :text], x[:, :, text + 1 :]), dim=2) for x in (query, key, value)]
        del query, key, value
        with exchange.layer(self.layer) as layer:
            layer.pattern = pattern
            layer.replicated[0] = (own[0], own[1], own[2])
        self.pause(("attention", self.layer))
        with exchange.layer(self.layer) as layer:
            pooled = _all_pooled(exchange, layer, 0) if layout.references else None
            parts = [self._collected(layer.partial[lane], lane) for lane in sorted(layer.partial)]
            exchange.drop(self.layer)
        merged = RunningMerge()
        alone = replace(pattern, query_rows=None, key_rows=None, pooled=_count(pooled))
        merged.add(compute(own[0], own[1], own[2], alone, pooled, return_lse=True))
        for result, _, _ in parts:
            merged.add(result)
        out = merged.result(own[0].dtype).out
        if self.text_merge == "average":
            totals = [total for _, total, _ in parts if total is not None]
            out[:, :text] = torch.stack(totals).sum(0) / sum(count for _, _, count in parts)
        return torch.cat((out[:, :text], torch.zeros_like(out[:, :1]), out[:, text:]), dim=1)

    def _collected(self, partial: PartialAttention, lane: int) -> tuple[AttentionResult, Tensor | None, int]:
        """The partial attention of a lane on lane 0: result, total, count. Call with `layer` held."""
        result = partial.merged.result(torch.float32)
        assert result.lse is not None
        out, lse = (self.exchange.copied(x, 0, lane, "text") for x in (result.out, result.lse))
        total = None if partial.total is None else self.exchange.copied(partial.total, 0, lane, "text")
        return AttentionResult(out, lse), total, partial.count


class BandWorker(Worker):
    """A band of image rows. The text tokens that it carries are placeholders that nobody reads."""

    def __init__(self, exchange: Exchange, lane: int, step: Attend, text_merge: TextMerge) -> None:
        """step: of the lane's schedule, in which this band attends."""
        super().__init__(exchange, lane, text_merge)
        self.band = step.band
        self._releases = step.releases

    @property
    def rows(self) -> Band:
        return self.exchange.plan.bands[self.band]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, compute: ComputeAttention, pool: Pool | None) -> Tensor:
        """One layer. query, key, value: [batch, heads, placeholders + rows * width, head_dim] after RoPE.

        compute: does the arithmetic. pool: makes the down-sampled tokens; None in variants without them.
        Returns [batch, placeholders + rows * width, channels], 0 for the placeholders.
        """
        self.layer += 1
        placeholders = query.shape[2] - len(self.rows) * self.exchange.plan.image.width
        query, key, value = (x[:, :, placeholders:] for x in (query, key, value))
        pooled = None if pool is None else pool(key, value, self.rows)
        key, value = _compact(key), _compact(value)
        with self.exchange.layer(self.layer) as layer:
            layer.published.add(self.band)
            layer.keys[self.band] = (key, value)
            if pooled is not None:
                layer.pooled[self.band] = pooled
        self.pause(("attention", self.layer))
        self._attend_replicated(key, value, compute)
        del key, value  # from here on the exchange decides how long they live
        keys, values, pooled, pattern = self._gathered()
        out = compute(query, keys, values, pattern, pooled, return_lse=False).out
        return functional.pad(out, (0, 0, placeholders, 0))

    def _gathered(self) -> tuple[Tensor, Tensor, Pooled | None, LocalPattern]:
        """What the band's queries see: keys and values of the replicated tokens and of all rows within reach."""
        exchange, plan = self.exchange, self.exchange.plan
        with exchange.layer(self.layer) as layer:
            pattern, replicated = _replicated(exchange, layer, self.lane)
            rows = [self._rows_of(layer, other, part) for other, part in plan.needs[self.band].items()]
            pooled = _all_pooled(exchange, layer, self.lane)
            layer.release(self._releases, self.lane)
        text = pattern.layout.text
        key, value = (
            torch.cat((own[:, :, :text], *(pair[i] for pair in rows), own[:, :, text:]), dim=2)
            for i, own in enumerate(replicated[1:])
        )
        band = replace(
            pattern,
            query_rows=self.rows,
            text_queries=False,
            reference_queries=False,
            key_rows=plan.rows_seen(self.band),
            pooled=_count(pooled),
        )
        return key, value, pooled, band

    def _rows_of(self, layer: LayerExchange, other: int, rows: Band) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows of a band, on this one's device. Call with `layer` held."""
        plan = self.exchange.plan
        start = plan.bands[other].start
        tokens = slice((rows.start - start) * plan.image.width, (rows.stop - start) * plan.image.width)
        key, value = (
            self.exchange.copied(x[:, :, tokens], self.lane, plan.lanes[other], "halo") for x in layer.keys[other]
        )
        return key, value

    def _attend_replicated(self, key: Tensor, value: Tensor, compute: ComputeAttention) -> None:
        """The replicated tokens' partial attention over the band's own rows."""
        exchange = self.exchange
        with exchange.layer(self.layer) as layer:
            pattern, replicated = _replicated(exchange, layer, self.lane)
        over_rows = replace(pattern, query_rows=None, key_rows=self.rows)
        rows_alone = replace(over_rows, text_keys=False, reference_keys=False)
        result = compute(replicated[0], key, value, rows_alone, None, return_lse=True)
        text_out = None
        if self.text_merge == "average":
            text = pattern.layout.text
            both = [
                torch.cat((own[:, :, :text], mine, own[:, :, text:]), dim=2)
                for own, mine in zip(replicated[1:], (key, value), strict=True)
            ]
            text_out = compute(replicated[0], both[0], both[1], over_rows, None, return_lse=False).out[:, :text]
        with exchange.layer(self.layer) as layer:
            partial = layer.partial.setdefault(self.lane, PartialAttention())
        partial.add(result, text_out)  # only this lane's workers, one at a time, come here


def _compact(tensor: Tensor) -> Tensor:
    """The tensor, copied where it would keep a larger one alive: values are a view of a block's first projection."""
    kept, needed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if kept > 1.5 * needed else tensor


def _replicated(
    exchange: Exchange, layer: LayerExchange, lane: int
) -> tuple[LocalPattern, tuple[Tensor, Tensor, Tensor]]:
    """The layer's pattern, and query, key and value of the replicated tokens on a lane's device, copied once.

    Call with `layer` held.
    """
    assert layer.pattern is not None
    if lane not in layer.replicated:
        query, key, value = (exchange.copied(x, lane, 0, "text") for x in layer.replicated[0])
        layer.replicated[lane] = (query, key, value)
    return layer.pattern, layer.replicated[lane]


def _all_pooled(exchange: Exchange, layer: LayerExchange, lane: int) -> Pooled | None:
    """The down-sampled keys and values of all bands on a lane's device. Call with `layer` held."""
    if not layer.pooled:
        return None
    owners = exchange.plan.lanes
    bands = [(owners[band], layer.pooled[band]) for band in sorted(layer.pooled)]
    keys = [exchange.copied(pooled.key, lane, owner, "pooled") for owner, pooled in bands]
    values = [exchange.copied(pooled.value, lane, owner, "pooled") for owner, pooled in bands]
    return Pooled(torch.cat(keys, 2), torch.cat(values, 2))


def _count(pooled: Pooled | None) -> int:
    return 0 if pooled is None else pooled.tokens
