"""Mean and variance of a whole feature map by group, gathered strip by strip, and the group norm that uses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def strip_moments(rows: Tensor, groups: int) -> Tensor:
    """Of rows [1, channels, rows, width], float64 [3, groups]: count, mean, sum of squared distances from the mean."""
    grouped = rows.float().reshape(groups, -1)
    variance, mean = torch.var_mean(grouped, dim=1, correction=0)
    count = torch.full_like(mean, grouped.shape[1], dtype=torch.float64)
    return torch.stack((count, mean.double(), variance.double() * count))


@dataclass(slots=True)
class Moments:
    """What the strips of one map have given; merged in the order of the rows, whichever device was first."""

    strips: dict[int, Tensor] = field(default_factory=dict)

    def add(self, start: int, found: Tensor) -> None:
        """start: the strip's first row. found: as `strip_moments` gives it, on any device."""
        self.strips[start] = found

    def merged(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the whole, float64 [groups] on the CPU.

        By the update of Chan, Golub and LeVeque (1983), which loses nothing where the mean is large.
        """
        parts = [self.strips[start].cpu() for start in sorted(self.strips)]
        count, mean, squares = parts[0]
        for more, other, others in parts[1:]:
            apart, total = other - mean, count + more
            mean = mean + apart * (more / total)
            squares = squares + others + apart * apart * (count * more / total)
            count = total
        return mean, squares / count


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """A group norm whose statistics are known, on any device. name: its module's in the model.

    moments: those of `Moments.merged`; None where nothing is computed.
    """

    name: str
    moments: tuple[Tensor, Tensor] | None
    _on: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict)  # a copy to a GPU waits for it

    def __call__(self, model: nn.Module, rows: Tensor) -> Tensor:
        """rows: [1, channels, rows, width]; a new tensor of their dtype, computed in float32.

        model: on the device of the rows.
        """
        module: Any = model.get_submodule(self.name)
        if rows.device not in self._on:
            assert self.moments is not None
            each = module.num_channels // module.num_groups
            spread = [part.repeat_interleave(each) for part in self.moments]
            self._on[rows.device] = tuple(
                part.detach().float().to(rows.device) for part in (*spread, module.weight, module.bias)
            )
        mean, variance, weight, bias = self._on[rows.device]
        return F.batch_norm(rows, mean, variance, weight, bias, False, 0.0, module.eps)

    def activated(self, model: nn.Module, rows: Tensor) -> Tensor:
        """The norm and SiLU."""
        return F.silu(self(model, rows), inplace=True)
