"""What a MODEL is, for the nodes that explain it: its size, and what Apply CLEAR Attention made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.model_management
import comfy.supported_models
import torch

from ...clear_core.flux import CHROMA, FLUX_1, FLUX_2, TEXT_TOKENS
from ...clear_core.show.cost import Model
from ..insight.cost import ModelInfo
from .attention_call import KEY, SETTINGS
from .overrides import class_owner

PROMPT_TOKENS = 256
"""Text tokens of FLUX.1: ComfyUI pads shorter prompts to so many. (The weights were distilled with 512.)"""

LONGCAT, OVIS = "LongCat-Image", "Ovis-Image"  # of the class of FLUX.1, in newer hosts

_OWN = (comfy.ldm.chroma.model.Chroma, comfy.ldm.flux.model.Flux)
_CLASS = "diffusion_model.__class__"
_WANT = (
    "Apply CLEAR Attention works on FLUX.1 models (dev, schnell, Krea, Fill, Canny, Depth, Kontext) and, without "
    "weights, on FLUX.2 and Chroma"
)


def transformer_of(model: Any) -> tuple[Any, str]:
    """The transformer inside a MODEL and its family, FLUX.1, FLUX.2, Chroma, LongCat-Image or Ovis-Image.

    Raises ValueError for any other, and for one whose class a pack has swapped.
    """
    diffusion = model.get_model_object("diffusion_model") if hasattr(model, "get_model_object") else model
    kind = _class_of(model, diffusion)
    if kind.__name__ == "ComfyFluxWrapper" or "nunchaku" in kind.__module__.lower():
        raise ValueError(
            f"{_WANT}. This one is FLUX in Nunchaku's own runtime, which ignores ComfyUI's attention hooks, so CLEAR "
            "would do nothing. Load FLUX with Load Diffusion Model (fp8 or GGUF files work) instead."
        )
    if kind is comfy.ldm.chroma.model.Chroma:
        return diffusion, CHROMA
    if kind is comfy.ldm.flux.model.Flux:
        return diffusion, _family(diffusion.params)
    if issubclass(kind, _OWN) and class_owner(kind):
        raise ValueError(_swapped(model, kind))
    raise ValueError(f"{_WANT}; this model is {type(getattr(model, 'model', model)).__name__} ({kind.__name__}).")


def _class_of(model: Any, diffusion: Any) -> type:
    """The class that the transformer has when this MODEL runs.

    A pack that swaps it by an object patch does so for its own clone, but as long as that clone is loaded the
    transformer, which all clones share, has the other class.
    """
    if not hasattr(model, "get_model_object") or "diffusion_model" in getattr(model, "object_patches", {}):
        return type(diffusion)
    return model.get_model_object(_CLASS)


def _family(params: Any) -> str:
    if getattr(params, "global_modulation", False):
        return FLUX_2
    if getattr(params, "yak_mlp", False):
        return OVIS
    # FLUX.1 has a pooled prompt, whichever its size.
    return LONGCAT if params.vec_in_dim is None else FLUX_1


def _swapped(model: Any, kind: type) -> str:
    """Why a model whose class a pack has swapped cannot be used, and what to do."""
    start = (
        f"{class_owner(kind)} has swapped the class of this model ({kind.__name__}). Its forward passes by ComfyUI's "
        "hooks, so CLEAR would do nothing. "
    )
    if _CLASS in getattr(model, "object_patches", {}):
        return f"{start}Connect the model from before that pack's node, or switch the node off."
    return f"{start}It did so on the loaded model itself: remove or switch off its node, then restart ComfyUI."


@dataclass(frozen=True, slots=True)
class ModelKind:
    """has_weights: whether there are distilled weights for it. can_be_cut: whether its forward can run in bands."""

    has_weights: bool
    can_be_cut: bool


def model_kind(model: Any) -> ModelKind:
    """What CLEAR can do for a MODEL. Raises ValueError for one that CLEAR does not work on."""
    family = transformer_of(model)[1]
    return ModelKind(has_weights=family == FLUX_1, can_be_cut=family != CHROMA)


def model_info(model: Any) -> ModelInfo:
    """Reads, changes nothing, loads nothing. Raises ValueError for a model that CLEAR does not work on."""
    flux, family = transformer_of(model)
    options = model.model_options.get("transformer_options", {})
    base = model.model
    # Weights may be stored in 8 bits; activations never are.
    weights = base.get_dtype()
    dtype = base.manual_cast_dtype or weights
    double, single = len(flux.double_blocks), len(flux.single_blocks)
    size = Model(
        layers=double + single,
        channels=flux.hidden_size,
        heads=flux.num_heads,
        dtype=dtype if dtype.itemsize >= 2 else torch.bfloat16,
        device=torch.device(model.load_device),
        can_be_cut=family != CHROMA,
    )
    text = PROMPT_TOKENS if family == FLUX_1 else TEXT_TOKENS
    settings, headline = options.get(SETTINGS), options.get(KEY, "")
    return ModelInfo(family, size, double, single, weights, int(model.model_size()), text, settings, headline)


def model_here(device: torch.device) -> Model:
    """FLUX.1 as ComfyUI would load and run it on a device, for who has no MODEL yet."""
    known: Any = comfy.supported_models.Flux.supported_inference_dtypes
    stored: Any = comfy.model_management.unet_dtype(device, supported_dtypes=known, weight_dtype=torch.bfloat16)
    cast: Any = comfy.model_management.unet_manual_cast(stored, device, known)
    return Model(dtype=cast or stored, device=device)
