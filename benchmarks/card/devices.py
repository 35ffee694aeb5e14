"""Several cards: copies between them, and one layer and a step in bands over all of them beside one card.

A result is held against that of as many lanes on one card, which do the same arithmetic. In a rehearsal the processor
stands for two cards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clear_core.flux import PIXELS_PER_TOKEN
from devtools.absent import stand_in_for_absent
from devtools.inprocess import import_host
from devtools.models import FULL_SIZE, flux_model, run_forward, sample

from ..peak import peaks
from ..step import SMALL, TENTH, inputs, patched
from ..timing import medians, wait
from .banded_layer import in_bands
from .correctness import relative_error
from .scale import Scale
from .supervise import Row

Run = Callable[[], Sequence[Tensor]]
"""Parts of a result from top to bottom, each where it was computed: a model's layers leave them there."""

_BYTES = 2**28
_BANDS = 4  # of a card: its border bands go first, so copies travel while it computes the others


def rows(scale: Scale) -> Iterator[Row]:
    count = 2 if scale.rehearsal else torch.cuda.device_count()
    if count == 1:
        yield {"left out": "there is one card"}
        return
    devices = [scale.device if scale.rehearsal else torch.device("cuda", index) for index in range(count)]
    if not scale.rehearsal:
        yield from _copies(scale, devices)
    with torch.inference_mode():
        yield _layer(scale, devices)
        yield _step(scale, devices)


def _copies(scale: Scale, devices: Sequence[torch.device]) -> Iterator[Row]:
    for source in devices:
        for target in devices:
            if source == target:
                continue
            data = torch.empty(_BYTES, dtype=torch.uint8, device=source)
            place = torch.empty(_BYTES, dtype=torch.uint8, device=target)
            seconds = medians({"copy": lambda data=data, place=place: place.copy_(data)}, target, scale.repeats)
            yield {
                "what": "copy",
                "cards": f"{source.index} to {target.index}",
                "peer access": torch.cuda.can_device_access_peer(target, source),
                "GB/s": _BYTES / seconds["copy"] / 1e9,
            }


def _layer(scale: Scale, devices: Sequence[torch.device]) -> Row:
    side, bands = scale.sides[-1], _BANDS * len(devices)
    call = scale.call(side, scale.radii[1])

    return {
        "what": "a layer",
        **_compared(scale, side, bands, devices, lambda lanes: in_bands(call, bands, lanes)),
    }


def _step(scale: Scale, devices: Sequence[torch.device]) -> Row:
    """Of a tenth of the blocks."""
    stand_in_for_absent()
    import_host()
    side, bands = scale.sides[-1], _BANDS * len(devices)
    shape = SMALL if scale.rehearsal else {**FULL_SIZE, **TENTH}
    model = flux_model(device=scale.device, dtype=scale.dtype, **shape)
    given = inputs(side, scale.device)

    def prepared(lanes: Sequence[torch.device]) -> Run:
        banded = patched(model, scale.radii[1], bands, ",".join(map(str, lanes)))
        # A sampling run is what has the host load a copy of the weights on each card; they stay there.
        sample(banded, 2 * scale.sides[0], 2 * scale.sides[0], steps=1, prompt=given)
        return lambda: [run_forward(banded, **given)]

    blocks = shape["depth"] + shape["depth_single_blocks"]
    return {"what": f"a step of {blocks} blocks", **_compared(scale, side, bands, devices, prepared)}


def _compared(
    scale: Scale,
    side: int,
    bands: int,
    devices: Sequence[torch.device],
    prepared: Callable[[Sequence[torch.device]], Run],
) -> Row:
    """All cards beside the first. prepared: what runs on the devices of some lanes."""

    def joined(run: Run) -> Tensor:
        return torch.cat([out.to(scale.device) for out in run()], 1)

    one = _Measured.of(prepared(devices[:1]), scale, devices[:1])
    same = joined(prepared([devices[0]] * len(devices)))
    on_all = prepared(devices)
    difference = relative_error(joined(on_all), same.double())
    every = _Measured.of(on_all, scale, devices)
    allowed = torch.finfo(scale.dtype).eps
    return {
        "cards": len(devices),
        "pixels": side * PIXELS_PER_TOKEN,
        "radius": scale.radii[1],
        "bands": bands,
        "ms on one": one.seconds * 1e3,
        "ms on all": every.seconds * 1e3,
        "times as fast": one.seconds / every.seconds,
        "peak GiB on one": one.gib,
        "peak GiB on all": every.gib,
        "difference": difference,
        "allowed": allowed,
        "right": difference <= allowed,
    }


@dataclass(frozen=True, slots=True)
class _Measured:
    """gib: peak memory of each card; nothing of a processor."""

    seconds: float
    gib: dict[str, float]

    @classmethod
    def of(cls, run: Run, scale: Scale, devices: Sequence[torch.device]) -> _Measured:
        def ended() -> None:
            run()
            for device in devices:
                wait(device)

        seconds = medians({"run": ended}, scale.device, scale.repeats)["run"]
        with peaks(devices) as gib:
            ended()
        return cls(seconds, {str(device): most for device, most in gib.items()})
