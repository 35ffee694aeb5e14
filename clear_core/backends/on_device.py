"""What backends keep on a device between calls: copies of plans, masks of the window."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..cache import BoundedCache

Value = TypeVar("Value")


class DeviceCache(Generic[Value]):
    """Values made of tensors on a device, once for each device and stream; bounded in bytes.

    A value belongs to the stream that made it: another one could read it before it is there, or after it was freed.
    """

    def __init__(self, size: int, bytes_of: Callable[[Value], int]) -> None:
        """size: bytes on all devices together."""
        self.cache: BoundedCache[Hashable, Value] = BoundedCache(size, bytes_of)

    def get(self, key: Hashable, used_with: Tensor, make: Callable[[], Value]) -> Value:
        """The value of `key` on a tensor's device, or `make()`, which is then cached."""
        place = place_of(used_with)
        return make() if place is None else self.cache.get((key, *place), lambda: _outside_inference_mode(make))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. Pinned on its way to a GPU: otherwise the copy would wait for all work there."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor keeps alive."""
    return tensor.untyped_storage().nbytes()


def multiprocessors(device: torch.device) -> int:
    """0 for a CPU, whose few cores always have enough to do."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def place_of(tensor: Tensor) -> tuple[torch.device, int] | None:
    """A tensor's device and the stream that works there. None for a subclass, such as a fake tensor.

    Those have values of their own kind, which do not outlive their mode.
    """
    if type(tensor) is not Tensor:
        return None
    return _place(tensor.device)


def _place(device: torch.device) -> tuple[torch.device, int]:
    return device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _outside_inference_mode(make: Callable[[], Value]) -> Value:
    """A tensor made in inference mode could not be used in a later call that records gradients."""
    with torch.inference_mode(False):
        return make()
