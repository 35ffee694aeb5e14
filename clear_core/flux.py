"""Constants of FLUX.1, the model that the CLEAR weights were distilled for, and of its relatives."""

from __future__ import annotations

from typing import Final

from .layout import Grid

FLUX_1, FLUX_2, CHROMA = FAMILIES = ("FLUX.1", "FLUX.2", "Chroma")
"""Families of models that weights can be for."""

PIXELS_PER_TOKEN: Final = 16
"""Pixels a side of one image token: the autoencoder's factor of 8 times the patch size of 2. FLUX.2 has the same."""

TEXT_TOKENS: Final = 512
"""Text tokens that the weights were distilled with. A prompt may bring fewer or more."""

TRAINING_GRID: Final = Grid(64, 64)
"""The token grid that the weights were distilled at: an image of 1024 x 1024 pixels."""

CHANNELS: Final = 3072
HEADS: Final = 24
HEAD_DIM: Final = CHANNELS // HEADS
LAYERS: Final = 19 + 38
"""Double-stream and single-stream blocks; each has one attention layer."""


def pixel_size(image: Grid) -> tuple[int, int]:
    """Width and height in pixels of an image of so many tokens."""
    return image.width * PIXELS_PER_TOKEN, image.height * PIXELS_PER_TOKEN


def token_grid(width: int, height: int) -> Grid:
    """The token grid of an image. width, height: pixels. A partial token at the border counts as one."""
    return Grid(-(-height // PIXELS_PER_TOKEN), -(-width // PIXELS_PER_TOKEN))
