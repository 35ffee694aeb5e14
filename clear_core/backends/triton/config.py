"""How the fused kernel cuts its work, by chip."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How one program works.

    tile: rows and columns of queries. box: rows and columns of a KV tile. block: keys at a time from a list.
    warps, stages: for Triton's compiler. descriptors: read through the chip's tensor memory accelerator.
    """

    tile: tuple[int, int]
    box: tuple[int, int]
    block: int
    warps: int
    stages: int
    descriptors: bool


def config_for(capability: tuple[int, int], element_size: int) -> KernelConfig:
    """The configuration for a chip (its CUDA capability) and an element size in bytes.

    It depends on nothing that changes from image to image. Chosen by what the compiler reports (no register
    spills, shared memory within every chip's limit, matrix instructions not serialised), not yet by timing.
    """
    if element_size == 4:  # for exactness, not for speed: IEEE products do not use the matrix units
        return KernelConfig((4, 4), (4, 4), 16, 8, 1, descriptors=False)
    if capability >= (9, 0):
        return KernelConfig((8, 16), (8, 8), 64, 8, 3, descriptors=True)
    return KernelConfig((8, 16), (4, 8), 64, 8, 2, descriptors=False)


def config_of(tensor: torch.Tensor) -> KernelConfig:
    """The configuration for a tensor's device and dtype."""
    return config_for(_capability(tensor.device), tensor.element_size())


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _capability(device: torch.device) -> tuple[int, int]:
    """The chip's CUDA capability; (0, 0) for other chips, which read by computed addresses."""
    if device.type != "cuda" or torch.version.hip is not None:
        return (9, 0) if interpreted() else (0, 0)
    return torch.cuda.get_device_capability(device)
