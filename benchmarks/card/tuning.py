"""Every candidate configuration of the fused kernel, at each radius; the image's queries alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

import torch

from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import KernelConfig, chip_of, config_for
from clear_core.flux import HEAD_DIM

from ..attention import Case, make_call
from ..timing import medians
from ..tune import candidates
from .scale import Scale
from .supervise import Row


def rows(scale: Scale) -> Iterator[Row]:
    backend = TritonBackend()
    missing = backend.unavailable()
    if missing is not None:
        yield {"left out": missing}
        return
    current = config_for(chip_of(scale.device), scale.dtype.itemsize)
    side = scale.sides[-2]
    with torch.inference_mode():
        for radius in scale.radii:
            call = make_call(Case(side, radius, 1, scale.heads, scale.dtype, False, False), scale.device)
            text = call.pattern.text_query_tokens
            call = replace(call, query=call.query[:, :, text:], pattern=replace(call.pattern, text_queries=False))
            for config in _candidates(scale):
                row = {"radius": radius, "pixels": 16 * side, "config": asdict(config), "current": config == current}
                try:
                    seconds = medians({"kernel": partial(backend.launch, call, config)}, scale.device, scale.repeats)
                except Exception as problem:  # out of shared memory, or a shape that this chip cannot have
                    yield {**row, "left out": str(problem).splitlines()[0][:120]}
                    continue
                flops = 4 * scale.heads * HEAD_DIM * backend.executed_pairs(call, config)
                yield {**row, "ms": seconds["kernel"] * 1e3, "TFLOP/s": flops / seconds["kernel"] / 1e12}


def _candidates(scale: Scale) -> list[KernelConfig]:
    if scale.rehearsal:  # the interpreter takes seconds for each
        return candidates((9, 0))[:2]
    return candidates(torch.cuda.get_device_capability(scale.device))
