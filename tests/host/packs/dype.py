"""Replaces the position embedder by one that builds on the live one's theta: as ComfyUI-DyPE does it."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.flux.math import rope
from torch import Tensor


class PosEmbedFlux(torch.nn.Module):
    def __init__(self, theta: float, axes_dim: list[int]) -> None:
        super().__init__()
        self.theta, self.axes_dim = theta, axes_dim

    def forward(self, ids: Tensor) -> Tensor:
        parts = [rope(ids[..., i], dim, 2 * self.theta) for i, dim in enumerate(self.axes_dim)]
        return torch.cat(parts, dim=-3).unsqueeze(1)


def apply(model: Any) -> Any:
    patched = model.clone()
    own = patched.model.diffusion_model.pe_embedder
    patched.add_object_patch("diffusion_model.pe_embedder", PosEmbedFlux(own.theta, own.axes_dim))
    return patched
