"""The small FLUX: ComfyUI's own class, thin and shallow."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from .text import WIDTH

SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": WIDTH,
        "context_in_dim": WIDTH,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 4,
        "depth": 2,
        "depth_single_blocks": 4,
        "axes_dim": [4, 14, 14],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }
)
"""Of `comfy.ldm.flux.model.FluxParams`. axes_dim is in FLUX.1-dev's proportions."""


def new_model(seed: int, **sizes: Any) -> Any:
    """A `comfy.ldm.flux.model.Flux` to train from nothing, in float32 and with gradients."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    model: Any = Flux(**{**SIZES, **sizes}, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.scale"):
                parameter.fill_(1)
            elif parameter.ndim < 2 or "mod.lin" in name or "modulation" in name or name.startswith("final_layer"):
                # Modulations and the last layer from zero: every block begins as the identity.
                parameter.zero_()
            else:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        # CLIP's features without their last norm have a standard deviation of 3.5.
        model.txt_in.weight.mul_(0.3)
        model.vector_in.in_layer.weight.mul_(0.3)
    return model.requires_grad_(True).train()
