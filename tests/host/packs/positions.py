"""Moves positions, or scales them by their span, as packs do that derive something from the size of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Spanning(torch.nn.Module):
    """A position embedder as DyPE's: the scale comes from the span of the positions that it is given."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids * (1 + ids[..., 1:].max() / 50))


def moved(args: dict[str, Any]) -> dict[str, Any]:
    """A `post_input` patch that shifts positions by the image's size."""
    ids = args["img_ids"]
    return {**args, "img_ids": ids + ids.amax(dim=1, keepdim=True) * 0.1}
