"""The self-test of the kernel for Hopper chips, which never ran on one: it may hang, so it has a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import chip_of, specialised_config
from clear_core.backends.triton.self_test import KernelVariant, PassingFailure
from clear_core.backends.triton.trial import failure_apart
from clear_core.flux import HEAD_DIM

from .scale import Scale
from .supervise import Row

_SECONDS = 45


def rows(scale: Scale) -> Iterator[Row]:
    missing = TritonBackend().unavailable()
    if missing is not None or specialised_config(chip_of(scale.device), scale.dtype.itemsize) is None:
        yield {"left out": missing or "no Hopper chip, or a Triton that it is not known with"}
        return
    for dtype in (torch.bfloat16, torch.float16):
        variant = KernelVariant(scale.device, dtype, HEAD_DIM, scale.heads, return_lse=False)
        try:
            failure = failure_apart(variant, seconds=_SECONDS)
        except PassingFailure as passing:
            failure = str(passing)
        said = failure or "passed"
        yield {"dtype": str(dtype).removeprefix("torch."), "said": said, "right": failure is None}
