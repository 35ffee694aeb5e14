"""What a MODEL is, for the nodes that explain it: its size, and what Apply CLEAR Attention made of it."""

from __future__ import annotations

from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import torch

from ...clear_core.show.cost import Model
from ..insight.cost import ModelInfo
from .attention_call import KEY, SETTINGS

FLUX_1, FLUX_2, CHROMA = "FLUX.1", "FLUX.2", "Chroma"


def transformer_of(model: Any) -> tuple[Any, str]:
    """The transformer inside a MODEL and its family: FLUX.1, FLUX.2 or Chroma. Raises ValueError for any other."""
    diffusion = model.get_model_object("diffusion_model") if hasattr(model, "get_model_object") else model
    kind, module = type(diffusion).__name__, type(diffusion).__module__
    want = (
        "Apply CLEAR Attention works on FLUX.1 models (dev, schnell, Krea, Fill, Canny, Depth, Kontext) and, without "
        "weights, on FLUX.2 and Chroma"
    )
    if kind == "ComfyFluxWrapper" or "nunchaku" in module.lower():
        raise ValueError(
            f"{want}. This one is FLUX in Nunchaku's own runtime, which ignores ComfyUI's attention hooks, so CLEAR "
            "would do nothing. Load FLUX with Load Diffusion Model (fp8 or GGUF files work) instead."
        )
    if type(diffusion) is comfy.ldm.chroma.model.Chroma:
        return diffusion, CHROMA
    if type(diffusion) is comfy.ldm.flux.model.Flux:
        return diffusion, FLUX_2 if getattr(diffusion.params, "global_modulation", False) else FLUX_1
    raise ValueError(f"{want}; this model is {type(getattr(model, 'model', model)).__name__} ({kind}).")


def model_info(model: Any) -> ModelInfo:
    """Reads, changes nothing, loads nothing. Raises ValueError for a model that CLEAR does not work on."""
    flux, family = transformer_of(model)
    options = model.model_options.get("transformer_options", {})
    base = model.model
    # Weights may be stored in 8 bits; activations never are.
    dtype = base.manual_cast_dtype or base.get_dtype()
    double, single = len(flux.double_blocks), len(flux.single_blocks)
    size = Model(
        layers=double + single,
        channels=flux.hidden_size,
        heads=flux.num_heads,
        dtype=dtype if dtype.itemsize >= 2 else torch.bfloat16,
        device=torch.device(model.load_device),
        can_be_cut=family != CHROMA,
    )
    return ModelInfo(family, size, double, single, options.get(SETTINGS), options.get(KEY, ""))
