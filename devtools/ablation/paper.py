"""What the paper measured (arXiv 2412.16112, its comparison of strategies on FLUX.1-dev, COCO 2014, 1024 pixels)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Published:
    """label: as the paper has it. strategy: the one of `clear_core.strategies` that it is compared with; "" for none.

    Against the images of FLUX.1-dev: fid is better low; clip_i and dino, in percent, are better high.
    """

    label: str
    strategy: str
    fid: float
    clip_i: float
    dino: float


PUBLISHED: Final = (
    Published("CLEAR, r = 8", "circle", 15.53, 86.47, 74.36),
    Published("CLEAR, r = 16", "", 14.27, 88.51, 78.35),
    Published("CLEAR, r = 32", "", 11.07, 89.92, 81.20),
    Published("Swin", "swin", 18.90, 85.72, 73.43),
    Published("strided", "strided", 24.88, 85.50, 70.72),
    Published("PixArt-Σ, keys and values compressed", "convolution", 30.64, 86.43, 71.45),
    Published("agent attention", "agent", 69.85, 78.18, 56.09),
    Published("linear attention", "linear", 324.54, 51.37, 2.17),
    Published("sigmoid attention", "sigmoid", 447.80, 41.34, 0.25),
)
"""Without distillation losses, as all the others are. Of CLEAR's radii 8 has the cost of the other strategies."""
