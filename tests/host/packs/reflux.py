"""A subclass of the host's FLUX with a forward of its own, which calls no wrapper and gives its blocks no options.

As RES4LYF does it by an object patch, and Fluxtapoz on the model itself.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.flux.model import Flux
from einops import rearrange
from torch import Tensor


class ReFlux(Flux):
    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, y: Tensor, guidance: Tensor | None = None, **_: Any
    ) -> Tensor:
        height, width = x.shape[-2:]
        img, img_ids = self.process_img(x)
        txt_ids = torch.zeros((x.shape[0], context.shape[1], 3), device=x.device, dtype=x.dtype)
        out = self.forward_orig(img, img_ids, context, txt_ids, timestep, y, guidance)
        rows, columns = -(-height // 2), -(-width // 2)
        out = rearrange(out, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=rows, w=columns, ph=2, pw=2)
        return out[:, :, :height, :width]


def by_object_patch(model: Any) -> Any:
    patched = model.clone()
    patched.add_object_patch("diffusion_model.__class__", ReFlux)
    return patched


def on_the_model(model: Any) -> Any:
    model.model.diffusion_model.__class__ = ReFlux
    return model
