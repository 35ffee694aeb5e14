"""Every candidate configuration of the fused kernel, at each radius; the image's queries alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch

from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import Chip, KernelConfig, chip_of
from clear_core.flux import PIXELS_PER_TOKEN

from ..tune import candidates, tuned
from .scale import Scale
from .supervise import Row


def rows(scale: Scale) -> Iterator[Row]:
    missing = TritonBackend().unavailable()
    if missing is not None:
        yield {"left out": missing}
        return
    side = scale.sides[-2]
    current = TritonBackend().config(scale.call(side, scale.radii[0]))
    facts = {"pixels": side * PIXELS_PER_TOKEN}
    with torch.inference_mode():
        for radius in scale.radii:
            for config, found in tuned(scale.call(side, radius), _candidates(scale), scale.repeats):
                row = {"radius": radius, **facts, "config": asdict(config), "current": config == current}
                if isinstance(found, str):
                    yield {**row, "left out": found}
                else:
                    yield {**row, "ms": found.seconds * 1e3, "TFLOP/s": found.executed_tflops}


def _candidates(scale: Scale) -> list[KernelConfig]:
    if scale.rehearsal:  # the interpreter takes seconds for each
        return candidates(Chip((9, 0)))[:2]
    return candidates(chip_of(scale.device))
