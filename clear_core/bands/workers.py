"""The workers of a forward in bands: what each does where the model's blocks begin and where they attend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..call import AttentionResult
from ..layout import Band, TokenLayout
from ..softmax import RunningMerge
from .exchange import Exchange, Layer, Share
from .fibers import Fiber

TextMerge = Literal["exact", "average"]
Place = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Part:
    """Which queries ask which keys in one computation. rows: of the image, None for none.

    anchors: whether the anchor's tokens (text and references) are among them.
    """

    query_rows: Band | None
    query_anchors: bool
    key_rows: Band | None
    key_anchors: bool


class Attend(Protocol):
    """Computes a part. Tensors are [batch, heads, tokens, head_dim], ordered text, image rows, references.

    pooled: down-sampled keys and values of the whole image, for image and reference queries.
    """

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
    ) -> AttentionResult: ...


Pool = Callable[[Tensor, Tensor, Band], tuple[Tensor, Tensor]]
"""Keys and values of a band's rows to their down-sampled ones."""


class _Step:
    """What anchor and bands have in common: a fiber that pauses at blocks and at attention."""

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

    def pause(self, place: Place) -> None:
        assert self._fiber is not None
        self._fiber.pause(place)

    def at_block(self, block: object) -> None:
        """Call where a block begins."""
        self.pause(("block", block))


class Anchor(_Step):
    """Text and references inside the host's forward, with one image token as a placeholder."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, attend: Attend) -> Tensor:
        """Attention of the text and the references, [batch, heads, text + 1 + references, head_dim] each.

        layout: of the whole sequence. Returns [batch, text + 1 + references, channels].
        """
        exchange, text = self.exchange, layout.text
        self.layer += 1
        own = [torch.cat((x[:, :, :text], x[:, :, text + 1 :]), dim=2) for x in (query, key, value)]
        del query, key, value
        with exchange.layer(self.layer) as layer:
            layer.layout = layout
            layer.anchor[0] = (own[0], own[1], own[2])
        self.pause(("attention", self.layer))
        with exchange.layer(self.layer) as layer:
            pooled = _joined(exchange, layer, 0) if layout.references else None
            shares = [layer.shares[lane].on(exchange, lane) for lane in sorted(layer.shares)]
            exchange.drop(self.layer)
        merged = RunningMerge()
        merged.add(attend(own[0], own[1], own[2], Part(None, True, None, True), layout, pooled, return_lse=True))
        for share in shares:
            merged.add(share.merged)
        out = merged.result(own[0].dtype).out
        if self.text_merge == "average":
            means = [share.mean for share in shares if share.mean is not None]
            out[:, :text] = torch.stack(means).sum(0) / sum(share.count for share in shares)
        return torch.cat((out[:, :text], torch.zeros_like(out[:, :1]), out[:, text:]), dim=1)


class Worker(_Step):
    """A band inside the host's forward, with placeholders for the text."""

    def __init__(self, exchange: Exchange, lane: int, band: int, text_merge: TextMerge) -> None:
        super().__init__(exchange, lane, text_merge)
        self.band = band

    @property
    def rows(self) -> Band:
        return self.exchange.plan.bands[self.band]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend, pool: Pool | None) -> Tensor:
        """Attention of the band's rows, [batch, heads, placeholders + rows, head_dim] each, after RoPE.

        attend: does the arithmetic. pool: makes the down-sampled tokens; None in variants without them.
        Returns [batch, placeholders + rows, channels]; the placeholders' answer is 0.
        """
        exchange, plan = self.exchange, self.exchange.plan
        self.layer += 1
        placeholders = query.shape[2] - len(self.rows) * plan.image.width
        query, key, value = (x[:, :, placeholders:] for x in (query, key, value))
        pooled = None if pool is None else pool(key, value, self.rows)
        key, value = _compact(key), _compact(value)
        with exchange.layer(self.layer) as layer:
            layer.published.add(self.band)
            layer.keys[self.band] = (key, value)
            if pooled is not None:
                layer.pooled[self.band] = pooled
        self.pause(("attention", self.layer))
        self._share(key, value, attend)
        seen = plan.rows_seen(self.band)
        with exchange.layer(self.layer) as layer:
            layout, anchor = _anchor(exchange, layer, self.lane)
            rows = [self._rows_of(layer, other, part) for other, part in plan.needs[self.band].items()]
            pooled = _joined(exchange, layer, self.lane)
            for other in plan.needs[self.band]:
                layer.uses[other] -= 1
                if layer.uses[other] == 0:
                    del layer.keys[other]
        keys = [
            torch.cat(
                (anchor[i][:, :, : layout.text], *(pair[i - 1] for pair in rows), anchor[i][:, :, layout.text :]), 2
            )
            for i in (1, 2)
        ]
        del key, value, rows, anchor
        part = Part(self.rows, False, seen, True)
        out = attend(query, keys[0], keys[1], part, layout, pooled, return_lse=False).out
        return functional.pad(out, (0, 0, placeholders, 0))

    def _rows_of(self, layer: Layer, other: int, rows: Band) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows of a band, on this one's device. Call with `layer` held."""
        plan = self.exchange.plan
        start = plan.bands[other].start
        tokens = slice((rows.start - start) * plan.image.width, (rows.stop - start) * plan.image.width)
        key, value = (
            self.exchange.moved(x[:, :, tokens], self.lane, plan.lanes[other], "halo") for x in layer.keys[other]
        )
        return key, value

    def _share(self, key: Tensor, value: Tensor, attend: Attend) -> None:
        """The anchor's queries over the band's own rows."""
        exchange = self.exchange
        with exchange.layer(self.layer) as layer:
            layout, anchor = _anchor(exchange, layer, self.lane)
        result = attend(anchor[0], key, value, Part(None, True, self.rows, False), layout, None, return_lse=True)
        mean = None
        if self.text_merge == "average":
            text = layout.text
            both = [
                torch.cat((own[:, :, :text], mine, own[:, :, text:]), dim=2)
                for own, mine in zip(anchor[1:], (key, value), strict=True)
            ]
            part = Part(None, True, self.rows, True)
            mean = attend(anchor[0], both[0], both[1], part, layout, None, return_lse=False).out[:, :text]
        with exchange.layer(self.layer) as layer:
            share = layer.shares.setdefault(self.lane, Share())
        share.merged.add(result)  # only this lane's workers, one at a time, come here
        if mean is not None:
            share.add_mean(mean)


def _compact(tensor: Tensor) -> Tensor:
    """The tensor, copied where it would keep a larger one alive: values are a view of a block's first projection."""
    kept, needed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if kept > 1.5 * needed else tensor


def _anchor(exchange: Exchange, layer: Layer, lane: int) -> tuple[TokenLayout, tuple[Tensor, Tensor, Tensor]]:
    """The anchor's query, key and value on a lane's device, moved once. Call with `layer` held."""
    assert layer.layout is not None
    if lane not in layer.anchor:
        query, key, value = (exchange.moved(x, lane, 0, "text") for x in layer.anchor[0])
        layer.anchor[lane] = (query, key, value)
    return layer.layout, layer.anchor[lane]


def _joined(exchange: Exchange, layer: Layer, lane: int) -> tuple[Tensor, Tensor] | None:
    """The whole image's down-sampled keys and values on a lane's device. Call with `layer` held."""
    if not layer.pooled:
        return None
    owners = exchange.plan.lanes
    key, value = (
        torch.cat(
            [exchange.moved(layer.pooled[band][i], lane, owners[band], "pooled") for band in sorted(layer.pooled)], 2
        )
        for i in (0, 1)
    )
    return key, value
