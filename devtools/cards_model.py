"""A FLUX model on simulated cards, and a sampling run of it through the host's guider, as a sampler node does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .models import flux_model

SHAPE: dict[str, Any] = {
    "depth": 2,
    "depth_single_blocks": 2,
    "hidden_size": 128,
    "num_heads": 2,
    "axes_dim": [16, 24, 24],
}
"""As narrow as FLUX can be with heads of 64, which every fused kernel takes."""


def model_on(device: torch.device, *, dtype: torch.dtype = torch.bfloat16, fp8: bool = False, **shape: Any) -> Any:
    """A MODEL whose weights lie in main memory until the host loads them onto `device`.

    fp8: keep the weights of linear layers in 8 bits, as the host does with `weight_dtype` fp8_e4m3fn.
    """
    model = flux_model(dtype=dtype, **{**SHAPE, **shape})
    model.load_device = device
    if fp8:
        model.model.manual_cast_dtype = dtype
        for module in model.model.diffusion_model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
            if isinstance(module, torch.nn.Linear):
                module.to(torch.float8_e4m3fn)
    return model


def sample_on(
    model: Any,
    height: int,
    width: int,
    *,
    steps: int = 1,
    text: int = 9,
    batch: int = 1,
    cfg: float = 1.0,
    cond: dict[str, Any] | None = None,
    negative_text: int = 0,
) -> Tensor:
    """The final latent of `height` x `width` cells, on the model's device.

    cond: what nodes put into both conditionings. negative_text: tokens of the negative prompt; 0 for as many.
    """
    import comfy.samplers

    def prompt(tokens: int) -> list[Any]:
        return [[torch.randn(1, tokens, 24), {"pooled_output": torch.randn(1, 12), "guidance": 3.5, **(cond or {})}]]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(text), prompt(negative_text or text))
    guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn(batch, 16, height, width)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)
