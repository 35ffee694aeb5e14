"""A small copy of an image in ComfyUI's temporary folder, for files that a browser does not show."""

from __future__ import annotations

import torch
from comfy_api.latest import ui
from torch import Tensor
from torch.nn import functional as F

from .slider_images import File

_LONGEST = 1024


def thumbnail(image: Tensor) -> File:
    """image: [height, width, 1, 3 or 4]. Saved as PNG, at most 1024 pixels on its longer side, without alpha."""
    height, width, _ = image.shape
    side = -(-max(height, width) // _LONGEST)
    rows = []
    for top in range(0, height, side):
        # The mean of the pixels that a smaller one covers. A few rows at a time: a copy of all takes gigabytes.
        band = image[top : top + side, :, :3].to("cpu", torch.float32).movedim(-1, 0)
        rows.append(F.avg_pool2d(band, (band.shape[1], min(side, width)), ceil_mode=True))
    small = torch.cat(rows, dim=1).movedim(0, -1).expand(-1, -1, 3)
    (saved,) = ui.PreviewImage(small[None]).values
    return File(filename=saved["filename"], subfolder=saved["subfolder"], type=saved["type"])
