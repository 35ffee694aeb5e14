"""What a latent shows, roughly, by the host's factors for previews."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def latent_colours(latent_format: Any, latent: Tensor) -> Tensor | None:
    """The first of a batch as float32 [height, width, 3], 0 to 1, a pixel for each cell; None for a format without
    factors.

    latent: [batch, channels, height, width], as the model sees it.
    """
    factors, bias = (getattr(latent_format, name, None) for name in ("latent_rgb_factors", "latent_rgb_factors_bias"))
    rearrange = getattr(latent_format, "latent_rgb_factors_reshape", None)
    latent = latent.float().cpu()
    if rearrange is not None:
        latent = rearrange(latent)
    if factors is None or len(factors) != latent.shape[1]:
        return None
    colours = torch.einsum("chw,cr->hwr", latent[0], torch.tensor(factors)) + torch.tensor(bias or 0.0)
    return ((colours + 1) / 2).clamp(0, 1)
