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

from ..call import AttentionResult
from ..layout import Band
from ..pattern import LocalPattern
from ..pooling import Pooled
from ..softmax import RunningMerge
from .exchange import Exchange, LaneLayer
from .fibers import Fiber
from .schedule import Attend, share_of_rows

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

        return Fiber(body, name)

    def pause(self, place: PausePoint) -> None:
        assert self._fiber is not None
        self._fiber.pause(place)

    def at_block(self, block: object) -> None:
        """Call where a block begins."""
        self.pause(("block", block))

    @property
    def _mine(self) -> LaneLayer:
        """The lane's part of the layer that the worker is in."""
        return self.exchange.lane(self.layer, self.lane)


class ReplicatedWorker(Worker):
    """Text and reference tokens, which every lane has. One image token stands in for the image.

    Their queries see all rows: every band computes their partial attention over its own rows, and the parts are
    merged by log-sum-exp, which is exact. Each lane merges a share of the tokens, for all lanes.
    """

    _whole: LocalPattern | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pattern: LocalPattern, compute: ComputeAttention
    ) -> Tensor:
        """One layer. query, key, value: [batch, heads, text + 1 + references, head_dim] after RoPE.

        pattern: of the complete sequence. Returns [batch, text + 1 + references, channels]; the image token's output
        is that of another token.
        """
        if self._whole is None or pattern != self._whole:
            self._whole = pattern
        pattern = self._whole  # the same object in every layer: it remembers the parts that bands attend to, they plans
        text = pattern.layout.text
        self.layer += 1
        own = [torch.cat((x[:, :, :text], x[:, :, text + 1 :]), dim=2) for x in (query, key, value)]
        del query, key, value
        self._mine.pattern, self._mine.replicated = pattern, (own[0], own[1], own[2])
        self.pause(("attention", self.layer))
        merged = self._merged(own, pattern, compute)
        self.exchange.publish_merged(self.layer, self.lane, merged)
        del merged
        self.pause(("merged", self.layer))
        out = self.exchange.merged(self.layer, self.lane)
        return torch.cat((out[:, :text], _some_output(out), out[:, text:]), dim=1)

    def _merged(self, own: list[Tensor], pattern: LocalPattern, compute: ComputeAttention) -> Tensor:
        """This lane's share of the tokens: their attention over all rows, and over the replicated tokens."""
        exchange, plan = self.exchange, self.exchange.plan
        pooled = exchange.all_pooled(self.layer, self.lane) if pattern.layout.references else None
        count = _count(pooled)
        alone = pattern.remembered(
            ("alone", count), lambda: replace(pattern, query_rows=None, key_rows=None, pooled=count)
        )
        over_own = compute(own[0], own[1], own[2], alone, pooled, return_lse=True)
        assert over_own.lse is not None
        rows = share_of_rows(own[0].shape[2], plan.lane_count, self.lane)
        shares = exchange.shares(self.layer, self.lane)
        merged = RunningMerge()
        merged.add(AttentionResult(over_own.out[:, rows], over_own.lse[:, :, rows]))
        for out, lse, *_ in shares:
            merged.add(AttentionResult(out, lse))
        result = merged.result(own[0].dtype).out
        if self.text_merge == "average":
            total = torch.stack([share[2] for share in shares]).sum(0)
            result[:, : total.shape[1]] = total / len(plan.bands)
        return result


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
        Returns [batch, placeholders + rows * width, channels]; the placeholders' output is that of another token.
        """
        self.layer += 1
        placeholders = query.shape[2] - len(self.rows) * self.exchange.plan.image.width
        query, key, value = (x[:, :, placeholders:] for x in (query, key, value))
        pooled = None if pool is None else pool(key, value, self.rows)
        key, value = _compact(key), _compact(value)
        self.exchange.publish_band(self.layer, self.lane, self.band, (key, value), pooled)
        self._attend_replicated(key, value, compute)
        del key, value, pooled  # from here on the exchange decides how long they live
        self.pause(("attention", self.layer))
        keys, values, pooled, pattern = self._gathered()
        out = compute(query, keys, values, pattern, pooled, return_lse=False).out
        return torch.cat((_some_output(out).expand(-1, placeholders, -1), out), dim=1)

    def _gathered(self) -> tuple[Tensor, Tensor, Pooled | None, LocalPattern]:
        """What the band's queries see: keys and values of the replicated tokens and of all rows within reach."""
        exchange, plan, mine = self.exchange, self.exchange.plan, self._mine
        assert mine.pattern is not None and mine.replicated is not None
        text = mine.pattern.layout.text
        rows = [exchange.rows(self.layer, self.lane, other, part) for other, part in plan.needs[self.band].items()]
        pooled = exchange.all_pooled(self.layer, self.lane)
        mine.release(self._releases)
        key, value = (
            torch.cat((own[:, :, :text], *(pair[i] for pair in rows), own[:, :, text:]), dim=2)
            for i, own in enumerate(mine.replicated[1:])
        )
        return key, value, pooled, self._seen(mine.pattern, _count(pooled))

    def _seen(self, whole: LocalPattern, pooled: int) -> LocalPattern:
        """The band's rows over all that they see."""
        return whole.remembered(
            ("seen", self.band, pooled),
            lambda: whole.part(
                query_rows=self.rows,
                key_rows=self.exchange.plan.rows_seen(self.band),
                replicated_queries=False,
                replicated_keys=True,
                pooled=pooled,
            ),
        )

    def _attend_replicated(self, key: Tensor, value: Tensor, compute: ComputeAttention) -> None:
        """The replicated tokens' partial attention over the band's own rows."""
        mine = self._mine
        assert mine.pattern is not None and mine.replicated is not None
        result = compute(
            mine.replicated[0], key, value, self._own_rows(mine.pattern, replicated=False), None, return_lse=True
        )
        text_out = None
        if self.text_merge == "average":
            text = mine.pattern.layout.text
            both = [
                torch.cat((own[:, :, :text], rows, own[:, :, text:]), dim=2)
                for own, rows in zip(mine.replicated[1:], (key, value), strict=True)
            ]
            over_rows = self._own_rows(mine.pattern, replicated=True)
            text_out = compute(mine.replicated[0], both[0], both[1], over_rows, None, return_lse=False).out[:, :text]
        mine.partial.add(result, text_out)

    def _own_rows(self, whole: LocalPattern, *, replicated: bool) -> LocalPattern:
        """The replicated tokens over the band's own rows. replicated: whether those tokens are keys too."""
        return whole.remembered(
            ("own rows", self.band, replicated),
            lambda: whole.part(
                query_rows=None, key_rows=self.rows, replicated_queries=True, replicated_keys=replicated
            ),
        )


def _some_output(out: Tensor) -> Tensor:
    """An output for a token that stands in for others and is never read: [batch, 1, channels].

    Not 0: a layer that quantises its input by its largest value would divide by it, and spread NaN to all its rows.
    """
    return out[:, :1] if out.shape[1] else out.new_ones(out.shape[0], 1, out.shape[2])


def _compact(tensor: Tensor) -> Tensor:
    """The tensor, copied where it would keep a larger one alive: values are a view of a block's first projection."""
    kept, needed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if kept > 1.5 * needed else tensor


def _count(pooled: Pooled | None) -> int:
    return 0 if pooled is None else pooled.tokens
