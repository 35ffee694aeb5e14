"""Model files of FLUX.1's tools and relatives: true width, the least depth, random weights.

Fill and Canny differ from FLUX.1 dev in what enters them, Kontext comes in scaled fp8, Redux is two linear layers
behind a whole SigLIP, and Chroma replaces all modulation by one small network. ComfyUI's own loaders tell them apart
by their tensors. Two are in plain fp8, as many people have them; it also halves their files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .checkpoints import FLUX, FLUX_SIZES, Recipes, Tensors, awakened, make_files, random_like

FILL = "diffusion_models/demo_flux_fill.safetensors"
CANNY = "diffusion_models/demo_flux_canny.safetensors"
KONTEXT = "diffusion_models/demo_flux_kontext_fp8_scaled.safetensors"
CHROMA = "diffusion_models/demo_chroma.safetensors"
REDUX = "style_models/demo_flux_redux.safetensors"
SIGLIP = "clip_vision/demo_sigclip_vision_patch14_384.safetensors"

_FP8 = torch.float8_e4m3fn


def make_tool_files(models: Path) -> None:
    """Put every file above that is missing below `models`, where the demo's FLUX already is: 3.8 GB, under a minute."""
    recipes: Recipes = {
        # The latent, the masked picture's latent and the mask, 8 x 8 to a latent cell: 16 + 16 + 64 channels.
        FILL: lambda: (_with_input(models / FLUX, 96), {}),
        # The latent and the edges' latent.
        CANNY: lambda: (_fp8(_with_input(models / FLUX, 32)), {}),
        KONTEXT: lambda: (_scaled_fp8(load_file(models / FLUX)), {}),
        CHROMA: lambda: (_fp8(_chroma()), {}),
        REDUX: lambda: (_redux(), {}),
        SIGLIP: lambda: (_siglip(), {}),
    }
    make_files(models, recipes)


def _with_input(dev: Path, channels: int) -> Tensors:
    """FLUX.1 dev taking more channels in; a token is 2 x 2 of the latent."""
    tensors = load_file(dev)
    key = "img_in.weight"
    wider = {key: torch.empty(tensors[key].shape[0], 4 * channels, device="meta")}
    return tensors | random_like(wider)


def _fp8(tensors: Tensors) -> Tensors:
    return {key: tensor.to(_FP8) if tensor.ndim == 2 else tensor for key, tensor in tensors.items()}


def _scaled_fp8(tensors: Tensors) -> Tensors:
    """Each matrix divided by a scale of its own, so that fp8's range is used, and the scale beside it."""
    out: Tensors = {"scaled_fp8": torch.zeros(2, dtype=_FP8)}  # two elements: made for weights only, not for inputs
    for key, tensor in tensors.items():
        if tensor.ndim != 2:
            out[key] = tensor
            continue
        scale = tensor.abs().amax().float() / torch.finfo(_FP8).max
        out[key] = (tensor.float() / scale).to(_FP8)
        out[key.removesuffix("weight") + "scale_weight"] = scale
    return out


def _chroma() -> Tensors:
    import comfy.ops
    from comfy.ldm.chroma.model import Chroma

    own: dict[str, Any] = {
        "in_channels": 64,
        "out_channels": 64,
        "in_dim": 64,
        "out_dim": 3072,
        "hidden_dim": 5120,
        "n_layers": 5,
    }
    absent = ("vec_in_dim", "guidance_embed")
    sizes: dict[str, Any] = {key: value for key, value in FLUX_SIZES.items() if key not in absent}
    model = Chroma(**sizes | own, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init)
    return awakened(random_like(model.state_dict()))


def _redux() -> Tensors:
    from comfy.ldm.flux.redux import ReduxImageEncoder

    return random_like(ReduxImageEncoder(device="meta", dtype=torch.bfloat16).state_dict())


def _siglip() -> Tensors:
    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops

    file = Path(comfy.clip_vision.__file__).with_name("clip_vision_siglip_384.json")
    config = json.loads(file.read_text(encoding="utf-8"))
    model = comfy.clip_model.CLIPVisionModelProjection(
        config, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init
    )
    return random_like(model.state_dict())
