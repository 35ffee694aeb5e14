"""The result of a distillation as a file, with what it was made with in its metadata: weights that Load CLEAR Weights
opens, or a LoRA that ComfyUI's own nodes open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..flux import FLUX_1
from ..weights import DOWN_FACTOR_KEY, FAMILY_KEY, RADIUS_KEY
from ..whole_file import written_whole

LORA_PREFIX = "transformer."
"""Of diffusers' names in a LoRA file."""


def file_metadata(
    radius: int, down_factor: int, settings: Mapping[str, str], *, family: str = FLUX_1
) -> dict[str, str]:
    """A file's metadata. settings: what else it was made with."""
    own = {RADIUS_KEY: str(radius), DOWN_FACTOR_KEY: str(down_factor), FAMILY_KEY: family}
    return {**settings, **own, "format": "pt"}


def save_weights(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a file that is there whole or not at all.

    weights: by the names of a released file. metadata: of `file_metadata`. Raises OSError where it cannot be written; a
    file that was there before is then unchanged.
    """
    made = {key: released_shape(key, tensor) for key, tensor in weights.items()}
    _write(path, made, metadata, dtype)


def save_lora(
    path: Path, parameters: Mapping[str, Tensor], metadata: Mapping[str, str], *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """`save_weights` for the parameters of `trained.Lora`, in the names that ComfyUI's Load LoRA reads."""
    _write(path, {f"{LORA_PREFIX}{key}": tensor for key, tensor in parameters.items()}, metadata, dtype)


def released_shape(key: str, tensor: Tensor) -> Tensor:
    """A pooling weight [f, f] as released files have it: [1, 1, 1, f, 1, f, 1]. Others as they are."""
    factor = tensor.shape[0]
    return tensor.reshape(1, 1, 1, factor, 1, factor, 1) if key.endswith("spatial_weight") else tensor


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    made = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    try:
        with written_whole(path) as part:
            save_file(made, part, dict(metadata))
    except SafetensorError as error:  # as which it reports a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
