"""Simulated CUDA cards for ComfyUI and this pack, on a machine without any.

Inside `cards(n)` the host finds n cards of a chosen size, loads models onto them and samples on them. All tensors are
fake: sizes, dtypes and devices are real, so an operation on tensors of two devices fails as it would on cards; contents
are not, so nothing about values can be checked.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from .cards_cuda import FakeCuda
from .cards_guard import guard_without_cuda
from .cards_mode import ThreadedFakeMode

GIB = 2**30


class Memory:
    """Bytes of all storages that live on each card; an observer."""

    def __init__(self, cards: int, total: int) -> None:
        self._total = total
        self._used = [0] * cards
        self._alive: dict[int, tuple[int, int]] = {}

    def used(self, card: int) -> int:
        return self._used[card]

    def began(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None: ...

    def ended(self, op: Any, out: Any) -> None:
        """Raises torch.OutOfMemoryError where a card is full."""
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self._follow(tensor.untyped_storage(), tensor.device.index)

    def _follow(self, storage: torch.UntypedStorage, card: int) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._alive:
            return
        if self._used[card] + size > self._total:
            raise torch.OutOfMemoryError(f"cuda:{card} has {self._total} bytes, {self._used[card]} used, {size} wanted")
        self._alive[name] = (card, size)
        self._used[card] += size
        weakref.finalize(storage, self._gone, name)

    def _gone(self, name: int) -> None:
        card, size = self._alive.pop(name)
        self._used[card] -= size


class Cards:
    """What is there inside `cards`. mode: to observe operations with, or to leave for a moment."""

    def __init__(self, count: int, memory: int) -> None:
        self.mode = ThreadedFakeMode()
        self.memory = Memory(count, memory)
        self.cuda = FakeCuda(count, memory, self.memory.used)
        self.mode.observers.append(self.memory)
        self.devices = [torch.device("cuda", number) for number in range(count)]


@contextmanager
def cards(count: int, *, memory: int = 80 * GIB, home: int = 0) -> Iterator[Cards]:
    """Let the host, already imported, have `count` cards of `memory` bytes. home: the one that it computes on.

    Tensors made inside are of no use outside. Models that the host has loaded before are as good as unknown inside.
    """
    import comfy.model_management as host

    found = Cards(count, memory)
    with ExitStack() as stack:
        stack.enter_context(guard_without_cuda())
        for name, value in found.cuda.functions().items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        changed = {
            "cpu_state": host.CPUState.GPU,
            "vram_state": host.VRAMState.NORMAL_VRAM,
            "current_loaded_models": [],
            # As on NVIDIA: weights that stay on the CPU are copied on streams of their own.
            "NUM_STREAMS": 2,
            "STREAMS": {},
            "stream_counters": {},
            "get_torch_device": lambda: found.devices[home],
        }
        for name, value in changed.items():
            stack.enter_context(patch.object(host, name, value))
        stack.enter_context(patch.object(torch.nn.Module, "_apply", _apply))
        stack.enter_context(patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None))
        stack.enter_context(patch.object(torch.backends.cuda, "can_use_flash_attention", _can_use_flash_attention))
        for package in [name.removesuffix(".registry") for name in sys.modules if name.endswith(_REGISTRY)]:
            stack.enter_context(_backends(found, package))
        stack.enter_context(patch.object(torch.cuda, "is_available", lambda: True))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(found.mode)
        found.cuda.set_device(home)
        yield found
        host.current_loaded_models.clear()


_REGISTRY = "clear_core.backends.registry"


@contextmanager
def _backends(cards: Cards, package: str) -> Iterator[None]:
    """Let the fused kernel be there, and no backend keep plans of this world's tensors for the next.

    package: `clear_core.backends`, which tests and ComfyUI import under names of their own.
    """
    registry, launch = (importlib.import_module(f"{package}.{name}") for name in ("registry", "triton.launch"))
    triton = importlib.import_module(f"{package}.triton.backend").TritonBackend
    on_device = importlib.import_module(f"{package}.on_device")

    def launched(kernel: Any, queries: Any, keys: Any, plan: Any, target: Any, *, lists: bool) -> None:
        tensors = (*kernel._tokens, plan.ranges, plan.boxes, *target)
        cards.mode.launch(WINDOW_KERNEL, *(tensor for tensor in tensors if tensor is not None))

    def kept(cache: Any, key: Any, used_with: Tensor, make: Callable[[], Any]) -> Any:
        """As for real tensors. Fake ones are not kept as a rule: they would outlive their mode."""
        return cache.cache.get((key, *on_device._place(used_with.device)), make)

    with ExitStack() as stack:
        stack.enter_context(patch.object(on_device.DeviceCache, "get", kept))
        stack.enter_context(patch.object(launch.WindowKernel, "launch", launched))
        stack.enter_context(patch.object(triton, "unavailable", lambda backend: None))
        stack.enter_context(patch.object(triton, "self_test_failure", lambda backend, variant, **_: None))
        for backend in registry.BACKENDS:
            backend.__init__()
        try:
            yield
        finally:
            for backend in registry.BACKENDS:
                backend.__init__()


class _Kernel:
    """A kernel as the mode's observers see operations."""

    is_view = False

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


WINDOW_KERNEL = _Kernel("clear::window_kernel")


def _apply(module: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """`torch.nn.Module._apply` without swapping tensors in place, which fake ones cannot have done to them."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            moved = function(parameter)
            same = moved is parameter
            module._parameters[name] = parameter if same else torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _can_use_flash_attention(params: Any, debug: bool = False) -> bool:
    return params.query.dtype in (torch.bfloat16, torch.float16) and params.query.shape[-1] <= 256
