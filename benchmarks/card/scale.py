"""How large the questions are: on a card FLUX.1's own, in a rehearsal as small as they can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clear_core.call import AttentionCall
from clear_core.flux import HEADS

from ..attention import Case, make_call


@dataclass(frozen=True, slots=True)
class Scale:
    """sides: image tokens a side, small to large. radii: of the window. repeats: timed runs, the median counts."""

    device: torch.device
    sides: tuple[int, ...]
    radii: tuple[int, ...]
    heads: int
    repeats: int
    bands: tuple[int, ...]

    @property
    def rehearsal(self) -> bool:
        return self.device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """What FLUX.1 runs in here."""
        return torch.float32 if self.rehearsal else torch.bfloat16

    def call(self, side: int, radius: int, down_factor: int = 1) -> AttentionCall:
        """Attention of one layer over random tensors. side: image tokens a side."""
        return make_call(Case(side, radius, down_factor, self.heads, self.dtype, False, False), self.device)


def card(device: torch.device) -> Scale:
    return Scale(device, (64, 128, 256, 512), (8, 16, 32), HEADS, repeats=5, bands=(32, 64))


def rehearsal() -> Scale:
    return Scale(torch.device("cpu"), (16, 24), (3, 5), heads=1, repeats=1, bands=(3, 6))
