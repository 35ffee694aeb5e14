"""A small picture of an image whose rows are finished strip by strip."""

from __future__ import annotations

import time
from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

_LONGEST = 512
_EVERY = 0.5  # seconds


class RowPreview:
    """convert: makes raw rows an image, 0 to 1."""

    def __init__(self, height: int, width: int, convert: Callable[[Tensor], Tensor]) -> None:
        self._scale = min(1.0, _LONGEST / max(height, width))
        self._size = max(1, round(width * self._scale)), max(1, round(height * self._scale))
        self._picture = Image.new("RGB", self._size, (64, 64, 64))
        self._convert = convert
        self._next, self._changed = 0.0, False

    def add(self, start: int, rows: Tensor) -> None:
        """rows: [1, 3, rows, width], raw; start: the first of them."""
        top, bottom = (min(round(row * self._scale), self._size[1]) for row in (start, start + rows.shape[2]))
        if top == bottom:
            return
        small = interpolate(rows[:, :3].float(), size=(bottom - top, self._size[0]), mode="area")
        image = self._convert(small)[0].movedim(0, -1).clamp(0, 1).mul(255).byte()
        self._picture.paste(Image.fromarray(image.cpu().numpy()), (0, top))
        self._changed = True

    def take(self) -> tuple[str, Image.Image, int] | None:
        """As ComfyUI's progress bar takes it; None where nothing is new, or the last one was just taken."""
        if not self._changed or time.monotonic() < self._next:
            return None
        self._next, self._changed = time.monotonic() + _EVERY, False
        return "JPEG", self._picture.copy(), _LONGEST
