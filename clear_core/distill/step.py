"""One step of the optimizer: gradients are clipped by their norm over all tensors, then AdamW moves the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

LARGEST_NORM: Final = 1.0
WEIGHT_DECAY: Final = 1e-4


class NoGradientError(RuntimeError):
    """The loss does not depend on a weight; the text names it."""


def adamw(weights: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW as the authors' script sets it."""
    return torch.optim.AdamW(list(weights), learning_rate, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY, eps=1e-8)


def clip(weights: dict[str, Tensor]) -> Tensor:
    """Clip the gradients of named weights to `LARGEST_NORM` together; the norm that they had.

    Raises NoGradientError where a weight has none.
    """
    missing = [name for name, weight in weights.items() if weight.grad is None]
    if missing:
        raise NoGradientError(f"The loss does not depend on {len(missing)} weights, the first is {missing[0]}.")
    return torch.nn.utils.clip_grad_norm_(list(weights.values()), LARGEST_NORM)
