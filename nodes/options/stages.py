"""Splits an enlargement into stages that are each small enough to keep the image coherent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...clear_core.flux import PIXELS_PER_TOKEN
from .by_size import ntk_by_size

LARGEST_SIDE = 16384
MAX_STAGES = 6
LARGEST_GROWTH = 4.0  # times the pixels in one stage: the authors' recipe (arXiv 2412.16112, section 4)


@dataclass(frozen=True, slots=True)
class Stage:
    """One enlargement. width, height: in pixels, after it. ntk_factor: what suits the size."""

    width: int
    height: int

    @property
    def ntk_factor(self) -> float:
        return ntk_by_size(self.width, self.height)


def plan_stages(width: int, height: int, megapixels: float, stages: int = 0) -> tuple[Stage, ...]:
    """The stages from an image of width x height pixels to about `megapixels`, its proportions kept.

    stages: how many; 0: as few as possible with no stage more than four times the pixels.
    Raises ValueError for a target that no image can have.
    """
    if not (math.isfinite(megapixels) and megapixels > 0):
        raise ValueError(f"target_megapixels is {megapixels}; choose more than 0, such as 16.8 for 4096 x 4096")
    growth = megapixels * 1e6 / (width * height)
    scale = math.sqrt(growth)
    last = _stage(width * scale, height * scale)
    if max(last.width, last.height) > LARGEST_SIDE:
        raise ValueError(
            f"target_megapixels {megapixels:g} would make {last.width} x {last.height} pixels of this {width} x "
            f"{height} image; {LARGEST_SIDE} a side is the most. Choose less."
        )
    if stages == 0:
        # Slightly more than four times, from rounding to tokens, is not worth another stage.
        stages = max(1, math.ceil(math.log(max(growth, 1.0)) / math.log(LARGEST_GROWTH) - 0.05))
    return (*(_stage(width * scale ** (i / stages), height * scale ** (i / stages)) for i in range(1, stages)), last)


def _stage(width: float, height: float) -> Stage:
    return Stage(
        *(max(PIXELS_PER_TOKEN, round(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN) for side in (width, height))
    )
