"""How the fused kernel cuts its work, by chip."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass

import torch

_RDNA3 = "gfx11"


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How one program works.

    tile: rows and columns of queries. box: rows and columns of a KV tile. block: keys at a time from a list.
    warps, stages: for Triton's compiler. descriptors: read through the chip's tensor memory accelerator.
    specialised: `hopper_kernel`, whose stages are buffers of its own; a block is as large as a box.
    """

    tile: tuple[int, int]
    box: tuple[int, int]
    block: int
    warps: int
    stages: int
    descriptors: bool
    specialised: bool = False


@dataclass(frozen=True, slots=True)
class Chip:
    """What a configuration depends on.

    capability: of an NVIDIA chip; (0, 0) for others, which read by computed addresses. amd: the name of an AMD chip,
    such as gfx1100. descriptors: whether this Triton can read through descriptors; before 3.4 it cannot. triton: its
    version, (0, 0) where it does not matter.
    """

    capability: tuple[int, int] = (0, 0)
    amd: str = ""
    descriptors: bool = True
    triton: tuple[int, int] = (0, 0)


class Configs:
    """The configurations of this machine's devices, found once: a call on a GPU is short."""

    def __init__(self) -> None:
        self._found: dict[tuple[torch.device, int], tuple[KernelConfig, KernelConfig | None]] = {}

    def of(self, tensor: torch.Tensor) -> tuple[KernelConfig, KernelConfig | None]:
        """The configuration for a tensor's device and dtype, and that of the specialised kernel where there is one."""
        key = (tensor.device, tensor.element_size())
        found = self._found.get(key)
        if found is None:
            chip = chip_of(key[0])
            found = self._found[key] = config_for(chip, key[1]), specialised_config(chip, key[1])
        return found


def config_for(chip: Chip, element_size: int) -> KernelConfig:
    """The configuration for a chip and an element size in bytes.

    It depends on nothing that changes from image to image. Chosen by what the compiler reports (no register spills,
    few instructions for a key, shared memory within every chip's limit, matrix instructions not serialised), not yet
    by timing.
    """
    if element_size == 4:  # for exactness, not for speed: IEEE products do not use the matrix units
        return KernelConfig((4, 4), (4, 4), 16, 8, 1, descriptors=False)
    if chip.amd.startswith(_RDNA3):  # 256 registers a thread: larger tiles, boxes or blocks spill up to 150 of them
        return KernelConfig((8, 8), (4, 4), 16, 8, 2, descriptors=False)
    # A quarter fewer instructions for a key, for 2% more keys. Triton 3.8 and 3.9 would serialise the products.
    if chip.capability == (9, 0) and chip.descriptors and (3, 4) <= chip.triton < (3, 8):
        return KernelConfig((8, 16), (8, 16), 128, 8, 2, descriptors=True)
    registers_suffice = chip.triton >= (3, 5)  # its code for consumer chips and for computed addresses needs fewer
    if chip.capability >= (9, 0) and (chip.descriptors or chip.capability < (12, 0)):
        stages = 3 if chip.capability < (12, 0) or registers_suffice else 2
        return KernelConfig((8, 16), (8, 8), 64, 8, stages, descriptors=chip.descriptors)
    if chip.capability >= (8, 0):
        box, block = ((8, 8), 64) if registers_suffice else ((4, 8), 32)
        return KernelConfig((8, 16), box, block, 8, 2, descriptors=False)
    return KernelConfig((8, 16), (4, 8), 64, 8, 2, descriptors=False)


def specialised_config(chip: Chip, element_size: int) -> KernelConfig | None:
    """The configuration of the kernel for Hopper chips; None where it does not run, or CLEAR_HOPPER_KERNEL is 0.

    Chosen by what the compiler reports: with boxes of 8 x 8 the softmax of a masked box takes as many instructions as
    the matrix units take cycles, with 8 x 16 a quarter fewer.
    """
    if chip.capability != (9, 0) or element_size != 2 or not (3, 6) <= chip.triton < (3, 10):
        return None
    if os.environ.get("CLEAR_HOPPER_KERNEL") == "0":
        return None
    return KernelConfig((8, 16), (8, 16), 128, 4, 2, descriptors=True, specialised=True)


def chip_of(device: torch.device) -> Chip:
    """The chip of a device. The interpreter, on a CPU, works as the newest one."""
    if device.type != "cuda":
        return Chip((9, 0)) if interpreted() else Chip()
    if torch.version.hip is not None:
        return Chip(amd=torch.cuda.get_device_properties(device).gcnArchName)
    return Chip(torch.cuda.get_device_capability(device), descriptors=has_descriptors(), triton=triton_version())


def has_descriptors() -> bool:
    """Whether this Triton has descriptors made on the host: from 3.4 on. PyTorch 2.7, the first for sm_120, has 3.3."""
    try:
        return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None
    except ImportError:  # there is no Triton, or none with tools
        return False


def triton_version() -> tuple[int, int]:
    """Major and minor version of Triton; (0, 0) where there is none."""
    try:
        import triton
    except ImportError:
        return 0, 0
    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
