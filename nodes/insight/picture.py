"""A page as a ComfyUI IMAGE."""

from __future__ import annotations

import torch
from torch import Tensor

from ...clear_core.show.figure import Page


def as_image(page: Page) -> Tensor:
    """float32 [1, height, width, 3], 0 to 1."""
    return torch.from_numpy(page.pixels()).float()[None] / 255
