"""What a file of a FLUX model would be once it is loaded, by its header: blocks, width, dtype and bytes of weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.supported_models
import folder_paths
import torch

from ...clear_core.flux import CHANNELS, HEAD_DIM
from ...clear_core.show.cost import Model
from ...clear_core.show.estimate import Subject

FOLDERS = ("diffusion_models", "checkpoints")
"""Of ComfyUI's models, in which a loader's file may lie."""

_PARAMETERS = 11_901_408_320  # of FLUX.1-dev
_DOUBLE, _SINGLE = 19, 38
_LARGEST_HEADER = 64 * 2**20  # bytes
_DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
_ASKED = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""Of Load Diffusion Model's weight_dtype; anything else keeps what the file has."""


def subject_of(usual: Model, folder: str, name: str, weight_dtype: str) -> Subject:
    """The model of a file as ComfyUI would load it on a device; FLUX.1-dev where the file is not here or not known.

    usual: FLUX.1 on that device. folder, name: as a loader node lists them. weight_dtype: of Load Diffusion Model.
    """
    path = folder_paths.get_full_path(folder, name) if folder in FOLDERS and name else None
    asked = _ASKED.get(weight_dtype)
    tensors = _tensors(Path(path)) if path is not None else None
    if not tensors:
        kept = _stored(asked or torch.bfloat16, usual)
        # A file in a format of its own, such as GGUF, stays as it is.
        size = Path(path).stat().st_size if path is not None else _PARAMETERS * kept.itemsize
        return Subject(usual, _DOUBLE, _SINGLE, kept, size)
    count = sum(math.prod(shape) for _, shape in tensors.values())
    largest = max(tensors.values(), key=lambda tensor: math.prod(tensor[1]))[0]
    kept = _stored(asked or largest, usual)
    channels = next(
        (shape[0] for key, (_, shape) in tensors.items() if key.endswith("single_blocks.0.linear2.weight")), CHANNELS
    )
    double, single = (_blocks(tensors, kind) for kind in ("double_blocks.", "single_blocks."))
    chroma = any("distilled_guidance_layer." in key for key in tensors)
    heads = max(1, channels // HEAD_DIM)
    model = Model(double + single, channels, heads, usual.dtype, usual.device, can_be_cut=not chroma)
    return Subject(model, double, single, kept, count * kept.itemsize)


def _stored(dtype: torch.dtype, usual: Model) -> torch.dtype:
    """In which ComfyUI keeps weights of a dtype."""
    if dtype.itemsize == 1:
        return dtype
    known: Any = comfy.supported_models.Flux.supported_inference_dtypes
    stored: Any = comfy.model_management.unet_dtype(usual.device, supported_dtypes=known, weight_dtype=dtype)
    return stored


def _blocks(tensors: Mapping[str, object], kind: str) -> int:
    return len({key.split(kind)[1].partition(".")[0] for key in tensors if kind in key})


def _tensors(path: Path) -> dict[str, tuple[torch.dtype, list[int]]] | None:
    """The transformer's tensors; None for a file that holds no FLUX in ComfyUI's own names."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        found = {
            key: (_DTYPES[entry["dtype"]], list(entry["shape"]))
            for key, entry in header.items()
            if _is_transformers(key) and entry["dtype"] in _DTYPES
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return None
    return found if any("double_blocks.0." in key for key in found) else None


def _is_transformers(key: str) -> bool:
    """A whole checkpoint holds text encoders and autoencoder too, under prefixes of their own."""
    return key.startswith("model.diffusion_model.") or not key.startswith(
        ("__metadata__", "text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")
    )
