"""What one layer's attention takes of the host up to the launch of the fused kernel, measured without a card.

Triton gets a driver that launches nothing. All before it is real: the kernel is compiled for the chip, and Triton binds
and looks up the arguments of every call. Left out are the driver's own part (tensor maps, the launch) and the text
queries, which are PyTorch's. Tensors are on the CPU, where PyTorch's views and allocations take about as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import clear_core.attention
from clear_core.attention import local_attention
from clear_core.backends import Choice, registry
from clear_core.backends.triton import backend, launch
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import Chip, has_descriptors, triton_version
from clear_core.call import AttentionResult
from clear_core.flux import HEAD_DIM, HEADS, PIXELS_PER_TOKEN, TEXT_TOKENS
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window

CAPABILITY = (9, 0)
RADIUS = 16
_CALLS = 50  # of a batch: long enough for the clock, short enough to fall between two interruptions
_BATCHES = 150


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a call. microseconds: of the fastest batches, because what else the machine does only adds."""

    name: str
    microseconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def stages(pixels: int) -> list[Stage]:
    """Each stage is what a call takes less when it is left out, from the last stage to the first."""
    attend = _layer(pixels // PIXELS_PER_TOKEN)
    removals: dict[str, Callable[[], Any]] = {
        "Triton: binding arguments, finding the kernel": _without_triton,
        "tensor descriptors": lambda: patch.object(launch.Reader, "of", lambda reader, memory: memory),
        "memory for the result, views, the kernel's arguments": lambda: patch.object(TritonBackend, "run", _no_result),
        "choosing the backend": lambda: patch.object(clear_core.attention, "choose_backend", _chosen),
    }
    with no_card(), torch.inference_mode():  # as ComfyUI runs a model
        attend()  # compiles
        taken = [float("inf")] * (len(removals) + 1)
        for _ in range(_BATCHES):
            with ExitStack() as removed:
                taken[0] = min(taken[0], _microseconds(attend))
                for index, remove in enumerate(removals.values(), 1):
                    removed.enter_context(remove())
                    taken[index] = min(taken[index], _microseconds(attend))
    found = [Stage("the call and its checks", taken[-1])]
    found += [Stage(name, taken[index] - taken[index + 1]) for index, name in reversed([*enumerate(removals)])]
    return [*found, Stage("all", taken[0])]


def table(found: list[Stage]) -> str:
    return "\n".join(f"{stage.name:<56}{stage.microseconds:>8.1f} us" for stage in found)


def _layer(side: int) -> Callable[[], object]:
    """One layer's call on tensors as FLUX has them: q and k on their own, v within the packed projection."""
    layout = TokenLayout(TEXT_TOKENS, Grid(side, side))
    query, key = torch.zeros(2, 1, HEADS, layout.tokens, HEAD_DIM, dtype=torch.bfloat16)
    value = torch.zeros(1, layout.tokens, 3, HEADS, HEAD_DIM, dtype=torch.bfloat16)[:, :, 2].transpose(1, 2)
    pattern = LocalPattern.whole(layout, Window(RADIUS))
    return lambda: local_attention(query, key, value, pattern)


def _microseconds(function: Callable[[], object]) -> float:
    function()
    started = time.thread_time()
    for _ in range(_CALLS):
        function()
    return (time.thread_time() - started) / _CALLS * 1e6


class NoDriver:
    """What Triton asks of a driver. It compiles for the chip, loads nothing and launches nothing."""

    def __init__(self) -> None:
        loaded = (object(), 0, 0, 0) if triton_version() < (3, 4) else (object(), 0, 0, 0, 1024)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
            load_binary=lambda *binary: loaded,
            unload_module=lambda module: None,
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY[0] * 10 + CAPABILITY[1], 32)

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return lambda *arguments: None


@contextmanager
def no_card() -> Iterator[None]:
    """Let CPU tensors go the way of a GPU's, up to a launch that does nothing."""
    import triton

    chip = Chip(CAPABILITY, descriptors=has_descriptors(), triton=triton_version())
    costs = {(name, "cpu"): cost for (name, kind), cost in registry.COSTS.items() if kind == "gpu"}
    with ExitStack() as stack:
        stack.enter_context(patch.object(registry, "COSTS", costs))
        stack.enter_context(patch.object(TritonBackend, "unavailable", lambda backend: None))
        stack.enter_context(patch.object(TritonBackend, "self_test_failure", lambda *_, **__: None))
        stack.enter_context(patch.object(backend, "interpreted", lambda: True))  # so that a CPU's tensor is not refused
        stack.enter_context(patch.object(backend, "attend_text", lambda call, result: None))
        stack.enter_context(patch("clear_core.backends.triton.config.chip_of", lambda device: chip))
        driver: Any = triton.runtime.driver
        driver.set_active(NoDriver())  # for good: without a card there is none to go back to
        for each in registry.BACKENDS:
            each.__init__()  # nothing that a backend found out before
        try:
            yield
        finally:
            for each in registry.BACKENDS:
                each.__init__()


@contextmanager
def _without_triton() -> Iterator[None]:
    from triton.compiler import CompiledKernel

    from clear_core.backends.triton import kernel

    with (
        patch.object(type(kernel.window_kernel), "run", lambda *arguments, **options: None),
        patch.object(CompiledKernel, "__getitem__", lambda compiled, grid: lambda *arguments: None),
    ):
        yield


def _chosen(call: object, name: str) -> Choice:
    return Choice(_CHOICE, "")


def _no_result(backend: object, call: object) -> AttentionResult:
    return _RESULT


_CHOICE = TritonBackend()
_RESULT = AttentionResult(Tensor(), None)
