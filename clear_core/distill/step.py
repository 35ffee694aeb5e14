"""Gradients before the optimizer takes them: all there, finite, not all zero, clipped by their norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

LARGEST_NORM: Final = 1.0


class NoGradientError(RuntimeError):
    """The loss does not depend on a weight; the text names it."""


class NotFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite."""


def clip(weights: Mapping[str, Tensor]) -> Tensor:
    """Clip the gradients of named weights to `LARGEST_NORM` together; the norm that they had.

    Raises NoGradientError where a weight has none, NotFiniteError where the norm is NaN or infinite.
    """
    missing = [name for name, weight in weights.items() if weight.grad is None]
    if missing:
        raise NoGradientError(f"The loss does not depend on {len(missing)} weights, the first is {missing[0]}.")
    norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), LARGEST_NORM)
    if not torch.isfinite(norm):
        raise NotFiniteError(f"The gradients are not finite: their norm is {float(norm)}")
    return norm
