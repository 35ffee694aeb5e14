"""Puts a forward of its own into the model's instance, for the time of a sampling run: as ComfyUI-NAG does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor


def nag_forward(self: Any, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, scale: float, **kw: Any) -> Tensor:
    # Straight to the host's, past the wrappers; the blocks get the options.
    return self._forward(x, timestep, context, *args, **kw)


@contextmanager
def sampling(model: Any) -> Iterator[None]:
    flux = model.model.diffusion_model
    flux.forward = MethodType(partial(nag_forward, scale=5.0), flux)
    try:
        yield
    finally:
        del flux.forward
