"""The small model's files as ComfyUI's loaders take them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clear_core.whole_file import written_whole

from .text import HOST_WIDTH, WIDTH

FOLDER = Path(__file__).resolve().parent / "models"
"""A models folder: ComfyUI finds its files by --extra-model-paths-config."""
FLUX = "diffusion_models/small_flux.safetensors"
VAE = "vae/small_flux_ae.safetensors"
RADIUS = 3
CLEAR = f"clear/small_flux_local_{RADIUS}.safetensors"
"""Distilled weights in the format of the released ones; `dev.py prove` makes them."""
CUSTOM_NODES = Path(__file__).resolve().parent / "custom_nodes"
"""What ComfyUI must load to open FLUX: `--extra-model-paths-config` takes it too."""
LOADER = "small_flux_loader"
"""The one pack in there."""


def save_flux(weights: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> Path:
    """In bfloat16, its text input widened: what is added meets zeros."""
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    narrow = tensors["txt_in.weight"]
    tensors["txt_in.weight"] = torch.nn.functional.pad(narrow, (0, HOST_WIDTH - narrow.shape[1]))
    return _save(tensors, folder / FLUX, metadata)


def read_flux(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_flux` was given: float32 of what bfloat16 has kept, and the metadata."""
    with safe_open(folder / FLUX, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    tensors["txt_in.weight"] = tensors["txt_in.weight"][:, :WIDTH].contiguous()
    return tensors, metadata


def save_vae(vae: Any, folder: Path, metadata: Mapping[str, str]) -> Path:
    """In half precision. vae: a `comfy.taesd.taesd.TAESD`."""
    return _save({name: tensor.half() for name, tensor in vae.state_dict().items()}, folder / VAE, metadata)


def put(source: Path, path: Path) -> None:
    """A copy of a file in a models folder, there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        shutil.copyfile(source, part)


def load(folder: Path = FOLDER) -> tuple[Any, Any]:
    """MODEL and VAE through the host's loaders. With the host on the path."""
    import comfy.sd
    import comfy.utils

    from .custom_nodes.small_flux_loader import install

    install()
    model = comfy.sd.load_diffusion_model(str(folder / FLUX))
    return model, comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / VAE)))


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, dict(metadata))
    return path
