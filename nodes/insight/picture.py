"""A page as a ComfyUI IMAGE, in the colours of ComfyUI's page."""

from __future__ import annotations

import torch
from torch import Tensor

from ...clear_core.show.figure import Page
from ...clear_core.show.theme import DARK, LIGHT, Theme


def as_image(page: Page) -> Tensor:
    """float32 [1, height, width, 3], 0 to 1."""
    return torch.from_numpy(page.pixels()).float()[None] / 255


def page_theme(light: bool) -> Theme:
    """The colours for a light or a dark palette of the page."""
    return LIGHT if light else DARK
