"""Dense attention under the exact mask, through the host's own kernel: what CLEAR must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clear_core.layout import Grid, TokenLayout

from core.naive import visible


def with_mask(model: Any, image: Grid, radius: int, references: tuple[Grid, ...] = (), view: str = "window") -> Any:
    """A clone of a MODEL whose every joint attention runs dense under the window's mask."""
    patched = model.clone()

    def masked(
        func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        text = q.shape[2] - image.tokens - sum(grid.tokens for grid in references)
        seen = visible(TokenLayout(text, image, references), radius, view)
        bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
        if mask is not None:
            bias = bias + (torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
        return func(q, k, v, heads, mask=bias, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = masked
    return patched
