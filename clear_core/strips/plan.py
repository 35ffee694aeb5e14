"""What a pass over strips takes, before it runs: its work, and the bytes of feature maps that wait at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import decode, encode
from .feature_map import Shape
from .sweep import Cost, Lane, cost_with_sources


@dataclass(frozen=True, slots=True)
class StripPlan:
    """work: products of numbers. maps: the most bytes of feature maps at a time."""

    work: float
    maps: int


def strip_plan(
    model: nn.Module, shape: Shape, dtype: torch.dtype, *, decoding: bool, recompute: bool = False
) -> StripPlan:
    """Of an encoder or a decoder over an input of channels, height, width. Nothing of its size is allocated.

    recompute: as for `decode`.
    """
    counted = _Counted([Lane(torch.device("cpu"), model, 2**30, 0)])
    given = torch.empty(1, dtype=dtype).expand(1, *shape)
    sweeps: Any = counted
    (decode if decoding else encode)(sweeps, given, lambda start, rows: None, recompute=recompute)
    return StripPlan(counted.work, counted.storage.most)


class _Shape:
    """A map that keeps nothing."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.size = shape[0] * shape[1] * shape[2] * dtype.itemsize


class _Sizes:
    """Storage that only counts."""

    def __init__(self) -> None:
        self.most = self._now = 0

    def new(self, shape: Shape, dtype: torch.dtype) -> _Shape:
        made = _Shape(shape, dtype)
        self._now += made.size
        self.most = max(self.most, self._now)
        return made

    def write(self, target: _Shape, start: int, rows: Tensor) -> None: ...

    def drop(self, made: _Shape) -> None:
        self._now -= made.size


class _Counted:
    """Sweeps that compute nothing."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes, self.storage = lanes, _Sizes()
        self.work = 0.0

    def run(self, sources: Any, compute: Any, write: Any, height: int, cost: Cost, **how: Any) -> None:
        self.work += height * cost_with_sources(cost, sources).work
