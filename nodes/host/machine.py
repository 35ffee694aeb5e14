"""The devices of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch


@dataclass(frozen=True, slots=True)
class MachineDevice:
    """A device of this machine. name: as `devices` takes it, such as cuda:0. free, total: bytes of memory."""

    name: str
    title: str
    free: int
    total: int

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


def home() -> torch.device:
    """The device that ComfyUI computes on."""
    return torch.device(comfy.model_management.get_torch_device())


def machine(named: Collection[str] = ()) -> list[MachineDevice]:
    """ComfyUI's own device, the others of its kind, and the CPU. Devices of another kind only if they are `named`.

    Asking a GPU for its free memory takes some of it, which ComfyUI on the CPU should not do unasked.
    """
    own = home()
    found = machine_devices(own)
    return [_device(device) for device in found if device.type in (own.type, "cpu") or device_name(device) in named]


def _device(device: torch.device) -> MachineDevice:
    free: Any = comfy.model_management.get_free_memory(device)
    total: Any = comfy.model_management.get_total_memory(device)
    return MachineDevice(device_name(device), device_title(device), int(free), int(total))


def device_title(device: torch.device) -> str:
    """The name of a GPU as its maker gives it; else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).synchronize()


def machine_devices(home: torch.device) -> list[torch.device]:
    """Every device that a lane can be on: `home`, the others of its kind, those of other kinds, the CPU.

    home: the device that ComfyUI computes on.
    """
    counts = {
        "cuda": torch.cuda.device_count(),
        "xpu": torch.xpu.device_count() if hasattr(torch, "xpu") else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    kinds = sorted(counts, key=lambda kind: kind != home.type)
    found = [torch.device(kind, index) for kind in kinds for index in range(counts[kind])]
    others = [device for device in (*found, torch.device("cpu")) if device_name(device) != device_name(home)]
    return [home, *others]


def device_name(device: torch.device) -> str:
    """As the input `devices` names it: cpu, or with an index, such as cuda:0."""
    return str(device) if device.type == "cpu" else f"{device.type}:{device.index or 0}"


def used_by_models() -> Mapping[str, int]:
    """Bytes that ComfyUI's loaded models take of each device: it unloads them where a run needs the room."""
    used: Counter[str] = Counter()
    for patcher in comfy.model_management.loaded_models():
        loaded: Any = patcher
        used[device_name(torch.device(loaded.load_device))] += int(loaded.loaded_size())
    return used
