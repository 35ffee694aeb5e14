"""Whole steps of the 12-billion shape, its weights made on the card: through the window, in bands, in fp8.

Each is run once, after a small step that compiles what is to be compiled: a step at 8192 px takes ten seconds, dense a
minute or two. So the dense one is run on a tenth of the blocks, which are all alike, beside CLEAR on the same.
Peak memory beside what the nodes predict. Nothing is read from a disk. In a rehearsal the model is small.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from clear_core.bands.memory import ModelShape, banded_bytes, stock_bytes
from clear_core.bands.plan import BandPlan
from clear_core.flux import PIXELS_PER_TOKEN, TEXT_TOKENS
from clear_core.layout import Grid
from clear_core.show.cost import BAND_ROWS
from clear_core.window import Window
from devtools.absent import stand_in_for_absent
from devtools.cards_model import keep_in_fp8
from devtools.inprocess import import_host
from devtools.models import FULL_SIZE, flux_model, run_forward

from ..peak import peaks
from ..step import SMALL, TENTH, Shape, inputs, patched
from ..timing import wait
from .scale import Scale
from .supervise import Row

_GIB = 2**30


def rows(scale: Scale) -> Iterator[Row]:
    stand_in_for_absent()
    import_host()
    shape = SMALL if scale.rehearsal else FULL_SIZE
    few = shape if scale.rehearsal else {**shape, **TENTH}
    with torch.inference_mode():
        yield from _against_dense(scale, _Steps(scale, few, fp8=False))
        for fp8 in (False, True):
            if not _fits(scale, fp8=fp8):
                yield {"weights": "fp8" if fp8 else "bf16", "left out": "the card is too small for the weights"}
                continue
            yield from _whole(scale, _Steps(scale, shape, fp8=fp8))


def _against_dense(scale: Scale, steps: _Steps) -> Iterator[Row]:
    for side in scale.sides[1:]:
        dense = steps.run(side)
        yield dense
        for radius in scale.radii:
            row = steps.run(side, radius)
            yield {**row, "against dense": dense["s"] / row["s"]} if "s" in row and "s" in dense else row


def _whole(scale: Scale, steps: _Steps) -> Iterator[Row]:
    """Every size, for CLEAR Report predicts other steps from these; the small ones first, which take little time."""
    for side in scale.sides:
        in_bands = scale.bands if side == scale.sides[-1] else (side // BAND_ROWS,)
        for bands in (0, *in_bands):
            yield steps.run(side, scale.radii[1], bands)


def _fits(scale: Scale, *, fp8: bool) -> bool:
    if scale.rehearsal:
        return True
    return torch.cuda.get_device_properties(scale.device).total_memory > (16 if fp8 else 30) * _GIB


class _Steps:
    """One model, and steps of it."""

    def __init__(self, scale: Scale, shape: Shape, *, fp8: bool) -> None:
        self.scale, self.fp8 = scale, fp8
        self.blocks = shape["depth"] + shape["depth_single_blocks"]
        self.model = flux_model(device=scale.device, dtype=scale.dtype, **shape)
        if fp8:
            keep_in_fp8(self.model, scale.dtype)

    def run(self, side: int, radius: int = 0, bands: int = 0) -> Row:
        """radius, bands: as in `patched`."""
        row: Row = {
            "pixels": side * PIXELS_PER_TOKEN,
            "blocks": self.blocks,
            "weights": "fp8" if self.fp8 else str(self.scale.dtype).removeprefix("torch."),
            "radius": radius,
            "bands": bands,
        }
        model = patched(self.model, radius, bands, str(self.scale.device))
        try:
            run_forward(model, **inputs(self.scale.sides[0], self.scale.device))
            seconds, peak = self._measured(model, side)
        except torch.OutOfMemoryError as problem:
            return {**row, "left out": str(problem).splitlines()[0][:120]}
        row["s"] = seconds
        if peak is not None and radius:
            row |= {"peak GiB": peak, "predicted GiB": self._predicted(side, radius, bands) / _GIB}
        return row

    def _measured(self, model: Any, side: int) -> tuple[float, float | None]:
        """Seconds of one step, and the GiB of the device that it takes; None on a CPU."""
        device, given = self.scale.device, inputs(side, self.scale.device)
        with peaks([device]) as found:
            started = time.perf_counter()
            run_forward(model, **given)
            wait(device)
            seconds = time.perf_counter() - started
        return seconds, found.get(device)

    def _predicted(self, side: int, radius: int, bands: int) -> int:
        """Bytes that the nodes count on, for FLUX.1's width in 16 bits."""
        grid, shape = Grid(side, side), ModelShape(prepared=int(self.fp8))
        if not bands:
            return stock_bytes(grid, TEXT_TOKENS, shape)
        return banded_bytes(BandPlan.cut(grid, bands, Window(radius)), TEXT_TOKENS, shape)
