"""What suits an image's size where a node leaves the choice open: NTK scaling and proportional attention.

FLUX was trained on images of about one megapixel. The authors stretch its positions and scale its attention for large
images (arXiv 2412.16112, section 4).
"""

from __future__ import annotations

BY_SIZE = 0.0
"""The value of `ntk_factor` that leaves it, and proportional attention, to the size of the image."""
NTK_FACTOR = 10.0
LARGE = 12e6
"""Pixels from which both are used: 4096 x 3072."""


def is_large(width: int, height: int) -> bool:
    """Whether an image, in pixels, needs both."""
    return width * height >= LARGE


def ntk_by_size(width: int, height: int) -> float:
    """The NTK factor for an image, in pixels; 1 for none."""
    return NTK_FACTOR if is_large(width, height) else 1.0
