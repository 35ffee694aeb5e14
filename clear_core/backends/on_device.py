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
        # A subclass, such as a fake tensor, has values of its own kind, which do not outlive its mode.
        if type(used_with) is not Tensor:
            return make()
        return self.cache.get((key, *_place(used_with.device)), lambda: _outside_inference_mode(make))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. Pinned on its way to a GPU: otherwise the copy would wait for all work there."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor keeps alive."""
    return tensor.untyped_storage().nbytes()


def _place(device: torch.device) -> tuple[torch.device, int]:
    return device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _outside_inference_mode(make: Callable[[], Value]) -> Value:
    """A tensor made in inference mode could not be used in a later call that records gradients."""
    with torch.inference_mode(False):
        return make()
