"""Bands in step: one forward of the model, cut into bands that hand each other keys and values layer by layer.

Workers are fibers, each inside the host's own forward:

    anchor    the text and the reference images, whole; one
    bands     rows of the image; the text they carry is a placeholder that nobody reads

A worker pauses where a block begins and where it attends. In each layer a lane takes its bands in order, as a
line buffer does: let the neighbours come as far as their keys and values, then let the band attend and finish its
block, then drop what nobody needs any more. The anchor's queries see everything: each band computes its share
of them over its own rows, and the shares are merged by their log-sum-exp, which is exact.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .bands import BandPlan
from .call import AttentionResult
from .fibers import Fiber, same_mode
from .layout import Band, TokenLayout
from .softmax import RunningMerge

TextMerge = Literal["exact", "average"]
Place = tuple[str, object]


_OUT_OF_STEP = (
    "The parts of the image did not do the same layers ({}). Another node skips or replaces FLUX's blocks or takes "
    "over their attention: remove it, put it before Apply CLEAR Attention, or use one band."
)


class OutOfStep(RuntimeError):
    """The workers of one forward did not do the same layers."""


class Stopped(BaseException):
    """Raised in a lane when another one failed. Not an Exception: only the first failure is of interest."""


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


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that crossed from one lane to another in one forward.

    halo: keys and values of rows. text: the anchor's queries, keys and values, and its shares. pooled: cells.
    """

    halo: int = 0
    text: int = 0
    pooled: int = 0


@dataclass(slots=True, eq=False)
class _Layer:
    """What the workers of one attention layer have published so far. Guarded by the stream's condition."""

    uses: list[int]
    layout: TokenLayout | None = None
    anchor: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # by lane
    published: set[int] = field(default_factory=set)  # bands whose keys have come, wherever they are by now
    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pooled: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    shares: dict[int, _Share] = field(default_factory=dict)  # by lane
    lanes_done: int = 0


@dataclass(slots=True, eq=False)
class _Share:
    """The anchor's result over the bands of one lane. mean: the sum of the bands' own answers, and their number."""

    merged: RunningMerge = field(default_factory=RunningMerge)
    mean: Tensor | None = None
    count: int = 0

    def add_mean(self, out: Tensor) -> None:
        self.mean = out.float() if self.mean is None else self.mean + out.float()
        self.count += 1

    def on(self, stream: Stream, lane: int) -> _SharePart:
        """What lane 0 gets of it. Call with the layer held."""
        part = self.merged.result(torch.float32)
        assert part.lse is not None
        out, lse = (stream.moved(x, 0, lane, "text") for x in (part.out, part.lse))
        mean = None if self.mean is None else stream.moved(self.mean, 0, lane, "text")
        return _SharePart(AttentionResult(out, lse), mean, self.count)


@dataclass(frozen=True, slots=True, eq=False)
class _SharePart:
    merged: AttentionResult
    mean: Tensor | None
    count: int


class Stream:
    """One forward in bands. Make it and `run` it."""

    def __init__(self, plan: BandPlan, devices: Sequence[torch.device], text_merge: TextMerge = "exact") -> None:
        """devices: one for each lane."""
        self.plan = plan
        self.devices = tuple(devices)
        self.text_merge = text_merge
        self._changed = threading.Condition()
        self._layers: dict[int, _Layer] = {}
        self._failure: BaseException | None = None
        self._layers_done: int | None = None  # of a lane that has finished
        self._sent = {"halo": 0, "text": 0, "pooled": 0}

    @property
    def traffic(self) -> Traffic:
        return Traffic(**self._sent)

    def run(self, anchor: Callable[[Anchor], object], band: Callable[[Worker], Tensor]) -> list[Tensor]:
        """Run the forward of the anchor and of every band; the bands' outputs, top to bottom.

        Raises the first worker's exception as it is, with no thread left behind.
        """
        lanes = [_Lane(self, number, anchor, band) for number in range(self.plan.lane_count)]
        helpers = []
        for lane in lanes[1:]:
            enter = same_mode(self.devices[lane.number])
            helpers.append(
                threading.Thread(
                    target=self._guarded, args=(lane, enter), name=f"clear-lane-{lane.number}", daemon=True
                )
            )
        for helper in helpers:
            helper.start()
        try:
            self._guarded(lanes[0], nullcontext)
        finally:
            for helper in helpers:
                helper.join()
            self._layers.clear()
        if self._failure is not None:
            raise self._failure
        return [output for lane in lanes for output in lane.outputs]

    def _guarded(self, lane: _Lane, enter: Callable[[], AbstractContextManager[object]]) -> None:
        try:
            with enter():
                layers = lane.run()
            with self._changed:
                self._layers_done = layers
                self._changed.notify_all()
        except Stopped:
            pass
        except BaseException as problem:
            with self._changed:
                if self._failure is None:
                    self._failure = problem
                self._changed.notify_all()

    def wait(self, number: int, ready: Callable[[], bool]) -> None:
        """Until other lanes have done their part of a layer. Call with `layer` held."""
        while True:
            if self._failure is not None:
                raise Stopped  # at once, also where nothing is to be waited for
            if ready():
                return
            if self._layers_done is not None and number >= self._layers_done:
                raise OutOfStep(_OUT_OF_STEP.format("one device has finished, another has not"))
            self._changed.wait()

    def layer(self, number: int) -> _Held:
        """A layer's state, to be entered; leaving tells the others."""
        return _Held(self._changed, self._layers, number, self.plan)

    def drop(self, number: int) -> None:
        """Call with `layer` held, when nobody needs the layer any more."""
        del self._layers[number]

    def moved(self, tensor: Tensor, lane: int, owner: int, kind: str) -> Tensor:
        """A tensor on a lane's device; what crosses lanes is counted. Call with `layer` held."""
        if lane == owner:
            return tensor
        self._sent[kind] += tensor.numel() * tensor.element_size()
        return tensor.to(self.devices[lane], non_blocking=True)


class _Held:
    """The condition and one layer behind it."""

    def __init__(self, changed: threading.Condition, layers: dict[int, _Layer], number: int, plan: BandPlan) -> None:
        self._changed, self._layers, self._number, self._plan = changed, layers, number, plan

    def __enter__(self) -> _Layer:
        self._changed.acquire()
        if self._number not in self._layers:
            self._layers[self._number] = _Layer(list(self._plan.uses))
        return self._layers[self._number]

    def __exit__(self, *_: object) -> None:
        self._changed.notify_all()
        self._changed.release()


class _Step:
    """What anchor and bands have in common: a fiber that pauses at blocks and at attention."""

    def __init__(self, stream: Stream, lane: int) -> None:
        self.stream = stream
        self.lane = lane
        self.layer = -1
        self._fiber: Fiber[Tensor] | None = None

    def start(self, function: Callable[[], Tensor], name: str) -> Fiber[Tensor]:
        def body(fiber: Fiber[Tensor]) -> Tensor:
            self._fiber = fiber
            return function()

        return Fiber(body, self.stream.devices[self.lane], name)

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
        stream, text = self.stream, layout.text
        self.layer += 1
        own = [torch.cat((x[:, :, :text], x[:, :, text + 1 :]), dim=2) for x in (query, key, value)]
        del query, key, value
        with stream.layer(self.layer) as layer:
            layer.layout = layout
            layer.anchor[0] = (own[0], own[1], own[2])
        self.pause(("attention", self.layer))
        with stream.layer(self.layer) as layer:
            pooled = _joined(stream, layer, 0) if layout.references else None
            shares = [layer.shares[lane].on(stream, lane) for lane in sorted(layer.shares)]
            stream.drop(self.layer)
        merged = RunningMerge()
        merged.add(attend(own[0], own[1], own[2], Part(None, True, None, True), layout, pooled, return_lse=True))
        for share in shares:
            merged.add(share.merged)
        out = merged.result(own[0].dtype).out
        if stream.text_merge == "average":
            means = [share.mean for share in shares if share.mean is not None]
            out[:, :text] = torch.stack(means).sum(0) / sum(share.count for share in shares)
        return torch.cat((out[:, :text], torch.zeros_like(out[:, :1]), out[:, text:]), dim=1)


class Worker(_Step):
    """A band inside the host's forward, with placeholders for the text."""

    def __init__(self, stream: Stream, lane: int, band: int) -> None:
        super().__init__(stream, lane)
        self.band = band

    @property
    def rows(self) -> Band:
        return self.stream.plan.bands[self.band]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend, pool: Pool | None) -> Tensor:
        """Attention of the band's rows, [batch, heads, placeholders + rows, head_dim] each, after RoPE.

        attend: does the arithmetic. pool: makes the down-sampled tokens; None in variants without them.
        Returns [batch, placeholders + rows, channels]; the placeholders' answer is 0.
        """
        stream, plan = self.stream, self.stream.plan
        self.layer += 1
        placeholders = query.shape[2] - len(self.rows) * plan.image.width
        query, key, value = (x[:, :, placeholders:] for x in (query, key, value))
        pooled = None if pool is None else pool(key, value, self.rows)
        key, value = _compact(key), _compact(value)
        with stream.layer(self.layer) as layer:
            layer.published.add(self.band)
            layer.keys[self.band] = (key, value)
            if pooled is not None:
                layer.pooled[self.band] = pooled
        self.pause(("attention", self.layer))
        self._share(key, value, attend)
        seen = plan.rows_seen(self.band)
        with stream.layer(self.layer) as layer:
            layout, anchor = _anchor(stream, layer, self.lane)
            rows = [self._rows_of(layer, other, part) for other, part in plan.needs[self.band].items()]
            pooled = _joined(stream, layer, self.lane)
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

    def _rows_of(self, layer: _Layer, other: int, rows: Band) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows of a band, on this one's device. Call with `layer` held."""
        plan = self.stream.plan
        start = plan.bands[other].start
        tokens = slice((rows.start - start) * plan.image.width, (rows.stop - start) * plan.image.width)
        key, value = (
            self.stream.moved(x[:, :, tokens], self.lane, plan.lanes[other], "halo") for x in layer.keys[other]
        )
        return key, value

    def _share(self, key: Tensor, value: Tensor, attend: Attend) -> None:
        """The anchor's queries over the band's own rows."""
        stream = self.stream
        with stream.layer(self.layer) as layer:
            layout, anchor = _anchor(stream, layer, self.lane)
        result = attend(anchor[0], key, value, Part(None, True, self.rows, False), layout, None, return_lse=True)
        mean = None
        if stream.text_merge == "average":
            text = layout.text
            both = [
                torch.cat((own[:, :, :text], mine, own[:, :, text:]), dim=2)
                for own, mine in zip(anchor[1:], (key, value), strict=True)
            ]
            part = Part(None, True, self.rows, True)
            mean = attend(anchor[0], both[0], both[1], part, layout, None, return_lse=False).out[:, :text]
        with stream.layer(self.layer) as layer:
            share = layer.shares.setdefault(self.lane, _Share())
        share.merged.add(result)  # only this lane's workers, one at a time, come here
        if mean is not None:
            share.add_mean(mean)


class _Lane:
    """The bands of one device, one at a time; lane 0 has the anchor too."""

    def __init__(
        self,
        stream: Stream,
        number: int,
        anchor: Callable[[Anchor], object],
        band: Callable[[Worker], Tensor],
    ) -> None:
        self.stream = stream
        self.number = number
        self.outputs: list[Tensor] = []
        self._workers = {index: Worker(stream, number, index) for index in stream.plan.bands_of(number)}
        self._fibers = {
            index: worker.start(lambda worker=worker: band(worker), f"clear-band-{index}")
            for index, worker in self._workers.items()
        }
        self._anchor: Fiber[Tensor] | None = None
        if number == 0:
            step = Anchor(stream, 0)

            def body() -> Tensor:
                anchor(step)
                return torch.empty(0)

            self._anchor = step.start(body, "clear-anchor")

    def run(self) -> int:
        """Until every worker has finished; the number of attention layers."""
        every = [*([self._anchor] if self._anchor is not None else []), *self._fibers.values()]
        try:
            for fiber in every:
                fiber.resume()  # as far as its first block
            number = 0
            while self._running(every):
                self._run_layer(number)
                number += 1
            self.outputs = [fiber.take_result() for fiber in self._fibers.values()]
            return number
        finally:
            for fiber in every:
                fiber.cancel()

    def _running(self, every: list[Fiber[Tensor]]) -> bool:
        places = {("end", None) if fiber.finished else fiber.place for fiber in every}
        if len(places) > 1:
            raise OutOfStep(_OUT_OF_STEP.format(", ".join(sorted(map(str, places)))))
        return places != {("end", None)}

    def _run_layer(self, number: int) -> None:
        stream, plan = self.stream, self.stream.plan
        if self._anchor is not None:
            self._to_attention(self._anchor, number)
        arrived: set[int] = set()

        def arrive(band: int) -> None:
            if band not in arrived:
                self._to_attention(self._fibers[band], number)
                arrived.add(band)

        for band in plan.borders[self.number]:
            arrive(band)
        for band, fiber in self._fibers.items():
            for other in plan.awaits[band]:
                if plan.lanes[other] == self.number:
                    arrive(other)
            with stream.layer(number) as layer:
                stream.wait(number, lambda band=band, layer=layer: self._ready(layer, band))
            fiber.resume()
        with stream.layer(number) as layer:
            layer.lanes_done += 1
        if self._anchor is not None:
            with stream.layer(number) as layer:
                stream.wait(number, lambda: layer.lanes_done == plan.lane_count)
            self._anchor.resume()

    def _ready(self, layer: _Layer, band: int) -> bool:
        return 0 in layer.anchor and layer.published.issuperset(self.stream.plan.awaits[band])

    def _to_attention(self, fiber: Fiber[Tensor], number: int) -> None:
        fiber.resume()
        if fiber.finished or fiber.place != ("attention", number):
            where = "the end" if fiber.finished else fiber.place
            raise OutOfStep(_OUT_OF_STEP.format(f"attention {number} expected, now at {where}"))


def _compact(tensor: Tensor) -> Tensor:
    """The tensor, copied where it would keep a larger one alive: values are a view of a block's first projection."""
    kept, needed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if kept > 1.5 * needed else tensor


def _anchor(stream: Stream, layer: _Layer, lane: int) -> tuple[TokenLayout, tuple[Tensor, Tensor, Tensor]]:
    """The anchor's query, key and value on a lane's device, moved once. Call with `layer` held."""
    assert layer.layout is not None
    if lane not in layer.anchor:
        query, key, value = (stream.moved(x, lane, 0, "text") for x in layer.anchor[0])
        layer.anchor[lane] = (query, key, value)
    return layer.layout, layer.anchor[lane]


def _joined(stream: Stream, layer: _Layer, lane: int) -> tuple[Tensor, Tensor] | None:
    """The whole image's down-sampled keys and values on a lane's device. Call with `layer` held."""
    if not layer.pooled:
        return None
    owners = stream.plan.lanes
    key, value = (
        torch.cat(
            [stream.moved(layer.pooled[band][i], lane, owners[band], "pooled") for band in sorted(layer.pooled)], 2
        )
        for i in (0, 1)
    )
    return key, value
