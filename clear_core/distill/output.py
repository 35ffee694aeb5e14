"""The result of a distillation as a file that Load CLEAR Weights opens, with what it was made with in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..weights import DOWN_FACTOR_KEY, RADIUS_KEY
from ..whole_file import written_whole


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
    with written_whole(path) as part:
        save_file(made, part, metadata)


def released_shape(key: str, tensor: Tensor) -> Tensor:
    """A pooling weight [f, f] as released files have it: [1, 1, 1, f, 1, f, 1]. Others as they are."""
    factor = tensor.shape[0]
    return tensor.reshape(1, 1, 1, factor, 1, factor, 1) if key.endswith("spatial_weight") else tensor
