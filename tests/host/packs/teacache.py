"""A forward_orig of its own that gives the blocks no options, put there for each call: as ComfyUI-TeaCache does it."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from comfy.ldm.flux.layers import timestep_embedding
from torch import Tensor


def forward_orig(
    self: Any,
    img: Tensor,
    img_ids: Tensor,
    txt: Tensor,
    txt_ids: Tensor,
    timesteps: Tensor,
    y: Tensor,
    guidance: Tensor | None = None,
    control: Any = None,
    transformer_options: Any = {},
    attn_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    img = self.img_in(img)
    vec = self.time_in(timestep_embedding(timesteps, 256).to(img.dtype))
    if guidance is not None:
        vec = vec + self.guidance_in(timestep_embedding(guidance, 256).to(img.dtype))
    vec = vec + self.vector_in(y)
    txt = self.txt_in(txt)
    pe = self.pe_embedder(torch.cat((txt_ids, img_ids), dim=1))
    options = options_for_blocks(transformer_options)
    for index, block in enumerate(self.double_blocks):
        img, txt = block(img=img, txt=txt, vec=vec, pe=pe, attn_mask=attn_mask, **options("double", index))
    joint = torch.cat((txt, img), 1)
    for index, block in enumerate(self.single_blocks):
        joint = block(joint, vec=vec, pe=pe, attn_mask=attn_mask, **options("single", index))
    return self.final_layer(joint[:, txt.shape[1] :], vec)


def options_for_blocks(options: dict[str, Any]) -> Any:
    """What each block gets besides tensors: nothing, the options, or the options with the block's name."""
    passed = options.get("teacache_passes", "nothing")

    def of(kind: str, index: int) -> dict[str, Any]:
        if passed == "nothing":
            return {}
        named = {"block_type": kind, "block_index": index} if passed == "named" else {}
        return {"transformer_options": {**options, **named}}

    return of


def apply(model: Any, passes: str = "nothing") -> Any:
    patched = model.clone()
    patched.model_options["transformer_options"]["teacache_passes"] = passes
    flux = patched.get_model_object("diffusion_model")

    def wrapper(function: Any, given: dict[str, Any]) -> Tensor:
        with patch.multiple(flux, forward_orig=forward_orig.__get__(flux, type(flux))):
            return function(given["input"], given["timestep"], **given["c"])

    patched.set_model_unet_function_wrapper(wrapper)
    return patched
