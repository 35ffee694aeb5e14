"""The result of a distillation as a file that Load CLEAR Weights opens, with what it was made with in its metadata."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..weights import DOWN_FACTOR_KEY, RADIUS_KEY


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    radius: int,
    down_factor: int,
    settings: Mapping[str, str],
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a file that is there whole or not at all.

    weights: by the names of a released file. settings: further metadata. Raises OSError or SafetensorError where it
    cannot be written; a file that was there before is then unchanged.
    """
    made = {key: released_shape(key, tensor.detach()).to("cpu", dtype).contiguous() for key, tensor in weights.items()}
    metadata = {**settings, RADIUS_KEY: str(radius), DOWN_FACTOR_KEY: str(down_factor), "format": "pt"}
    handle, name = tempfile.mkstemp(suffix=".part", prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(made, name, metadata)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def released_shape(key: str, tensor: Tensor) -> Tensor:
    """A pooling weight [f, f] as released files have it: [1, 1, 1, f, 1, f, 1]. Others as they are."""
    factor = tensor.shape[0]
    return tensor.reshape(1, 1, 1, factor, 1, factor, 1) if key.endswith("spatial_weight") else tensor
