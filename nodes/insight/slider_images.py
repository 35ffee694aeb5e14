"""The images of the page's slider: temporary files, and what the page needs to know about them."""

from __future__ import annotations

from typing import TypedDict

import torch
from comfy_api.latest import ui
from torch import Tensor
from torch.nn import functional as F

LONGEST = 4096
"""Pixels of a slider's image at most on its longer side: two larger ones would take a browser's memory."""

MOST = 32
"""Pairs of a batch that the slider shows."""


class File(TypedDict):
    """As ComfyUI's /view takes it."""

    filename: str
    subfolder: str
    type: str


class Pair(TypedDict):
    """Two images of one size. size, shown: width and height of the images and of the files. batch: pairs in all."""

    a: File
    b: File
    size: tuple[int, int]
    shown: tuple[int, int]
    batch: int


def slider_pairs(a: Tensor, b: Tensor) -> list[Pair]:
    """Save two batches [B, height, width, C] of one size as temporary PNGs; one of them may have a single image."""
    batch, (height, width) = max(len(a), len(b)), a.shape[1:3]
    shrink = max(1.0, max(height, width) / LONGEST)
    shown = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    files = [[_saved(image, shown) for image in images[:MOST]] for images in (a, b)]
    pairs = []
    for i in range(min(batch, MOST)):
        one, other = (of_batch[i if len(of_batch) > 1 else 0] for of_batch in files)
        pairs.append(Pair(a=one, b=other, size=(width, height), shown=shown, batch=batch))
    return pairs


def _saved(image: Tensor, size: tuple[int, int]) -> File:
    """image: [height, width, C]. One at a time: a batch may be on a GPU or in another dtype."""
    image = image.to("cpu", torch.float32)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, 3)
    width, height = size
    if image.shape[:2] != (height, width):
        # The mean of the pixels that a smaller one covers.
        image = F.interpolate(image.movedim(-1, 0)[None], (height, width), mode="area")[0].movedim(0, -1)
    (saved,) = ui.PreviewImage(image[None]).values
    return File(filename=saved["filename"], subfolder=saved["subfolder"], type=saved["type"])
