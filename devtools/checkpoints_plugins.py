"""Plugins for FLUX.1: LoRAs in the naming schemes of several trainers, ControlNets, and schnell instead of dev.

True width, the least depth, random weights. Names and shapes are asked of the host's own classes and tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .checkpoints import FLUX_SIZES, HIDDEN, LORA, Recipes, Tensors, awakened, flux, make_files, random_like, seeded

SCHNELL = "diffusion_models/demo_flux_schnell.safetensors"
CONTROL_UNION = "controlnet/demo_flux_controlnet_union.safetensors"
CONTROL_XLABS = "controlnet/demo_flux_controlnet_xlabs.safetensors"
LORA_DIFFUSERS = "loras/demo_lora_diffusers.safetensors"
LORA_XLABS = "loras/demo_lora_xlabs.safetensors"

_UNION_MODES = 10  # of FLUX.1-dev-ControlNet-Union-Pro; canny is 0
_RANK = 4


def make_plugin_files(models: Path) -> None:
    """Put every file above that is missing below `models`: 2.9 GB, half a minute. Needs the demo files."""
    recipes: Recipes = {
        SCHNELL: lambda: (flux(guidance_embed=False), {}),
        CONTROL_UNION: lambda: (_in_diffusers_names(_control_net(latent_input=True, num_union_modes=_UNION_MODES)), {}),
        CONTROL_XLABS: lambda: (_control_net(depth_single_blocks=0), {}),
        LORA_DIFFUSERS: lambda: (_lora_in_diffusers_names(load_file(models / LORA)), {}),
        LORA_XLABS: lambda: (_lora_in_xlabs_names(), {}),
    }
    make_files(models, recipes)


# ---- ControlNets -------------------------------------------------------------------------------------


def _control_net(**overrides: Any) -> Tensors:
    """In the host's own names, as XLabs publish theirs."""
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    model = ControlNetFlux(
        **FLUX_SIZES | overrides, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init
    )
    return awakened(random_like(model.state_dict()))


def _in_diffusers_names(tensors: Tensors) -> Tensors:
    """As InstantX and Shakker Labs publish theirs: queries, keys and values apart."""
    out: Tensors = {}
    done = set()
    for name, (key, rows) in _diffusers_layers().items():
        if key in tensors:
            out[name] = tensors[key][rows]
            done.add(key)
    return out | {key: tensor for key, tensor in tensors.items() if key not in done}


def _diffusers_layers() -> dict[str, tuple[str, slice]]:
    """Each tensor's name in diffusers -> the host's tensor that holds it, and in which rows."""
    import comfy.utils

    table: dict[str, Any] = comfy.utils.flux_to_diffusers(FLUX_SIZES)
    out = {}
    for name, place in table.items():
        key, part, *_ = (place, None) if isinstance(place, str) else place
        out[name] = (key, slice(None) if part is None else slice(part[1], part[1] + part[2]))
    return out


# ---- LoRAs -------------------------------------------------------------------------------------------


def _lora_in_diffusers_names(kohya: Tensors) -> Tensors:
    """The demo LoRA, the same change of every weight, as diffusers and most trainers write it."""
    out: Tensors = {}
    for name, (key, rows) in _diffusers_layers().items():
        layer, _, kind = key.rpartition(".")
        given = "lora_unet_" + layer.replace(".", "_")
        if kind == "weight" and f"{given}.lora_up.weight" in kohya:
            module = "transformer." + name.removesuffix(".weight")
            out[f"{module}.lora_A.weight"] = kohya[f"{given}.lora_down.weight"].clone()
            out[f"{module}.lora_B.weight"] = kohya[f"{given}.lora_up.weight"][rows]
    return out


def _lora_in_xlabs_names() -> Tensors:
    """Another LoRA, on the attention and on what follows it, as XLabs write it.

    The host knows the format by a whole FLUX's last blocks, so they are in it too, though the demo has none of them.
    """
    wide = 5 * HIDDEN  # a single block's attention and MLP, side by side
    shapes = {f"double_blocks.{i}.processor.{layer}": size for i in (0, 18) for layer, size in _XLABS_DOUBLE.items()}
    for i in (0, 37):
        shapes[f"single_blocks.{i}.processor.qkv_lora"] = (3 * HIDDEN, HIDDEN)
        shapes[f"single_blocks.{i}.processor.proj_lora"] = (HIDDEN, wide)
    out: Tensors = {}
    for name, (rows, columns) in shapes.items():
        down = torch.randn(_RANK, columns, generator=seeded(name + "down")) / columns**0.5
        out[f"{name}.down.weight"] = down.to(torch.bfloat16)
        out[f"{name}.up.weight"] = torch.randn(rows, _RANK, generator=seeded(name + "up")).to(torch.bfloat16)
    return out


_XLABS_DOUBLE = {  # 1: of the image, 2: of the text; rows and columns
    "qkv_lora1": (3 * HIDDEN, HIDDEN),
    "qkv_lora2": (3 * HIDDEN, HIDDEN),
    "proj_lora1": (HIDDEN, HIDDEN),
    "proj_lora2": (HIDDEN, HIDDEN),
}
