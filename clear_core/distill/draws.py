"""The random numbers of training: which image, how noisy, which noise.

Each sample of a run has a number, and its draws depend on that and the seed alone. So a run that goes on after a stop,
and several processes that share the samples of a step, see the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 1000
# A multiplier without common factors with 2^63: neighbouring numbers get far-apart seeds.
_MIX = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Draw:
    """image: of the training set. sigma: of the noise, over 0 and up to 1. noise, spread: normal, of the latent's
    shape."""

    image: int
    sigma: float
    noise: Tensor
    spread: Tensor


def draw(seed: int, number: int, images: int, shape: tuple[int, ...], shift: float = 1.0) -> Draw:
    """For sample `number` of a run over so many images; each epoch goes through all of them in another order.

    shift: moves sigma, which is uniform, to shift sigma / (1 + (shift - 1) sigma).
    """
    epoch, position = divmod(number, images)
    order = torch.randperm(images, generator=_generator(seed, -1 - epoch))
    generator = _generator(seed, number)
    index = int(torch.rand((), generator=generator, dtype=torch.float64) * _STEPS)
    noise, spread = (torch.randn(shape, generator=generator) for _ in range(2))
    sigma = (_STEPS - index) / _STEPS
    return Draw(int(order[position]), shift * sigma / (1 + (shift - 1) * sigma), noise, spread)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + number) * _MIX % 2**63)
