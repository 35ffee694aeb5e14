"""What the fused kernel's launches hand to Triton's driver, with a driver that launches nothing.

Run by `test_triton.py` in a process of its own: what `triton.jit` makes is settled once, when Triton is imported.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from benchmarks.launch import NoDriver, no_card
from clear_core.backends.triton import launch
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import Chip, KernelConfig, has_descriptors, specialised_config, triton_version
from clear_core.call import AttentionCall
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled
from clear_core.window import Window

POINTERS = KernelConfig((4, 8), (4, 4), 16, 4, 1, descriptors=False)
DESCRIPTORS = replace(POINTERS, descriptors=True)
HOPPER = KernelConfig((8, 16), (8, 8), 64, 4, 3, descriptors=True, specialised=True)
CONFIGS = {
    "pointers": POINTERS,
    **({"descriptors": DESCRIPTORS} if has_descriptors() else {}),
    **({"hopper": HOPPER} if specialised_config(Chip((9, 0), triton=triton_version()), 2) else {}),
}
# 8 text tokens: the log-sum-exp of the image behind them is aligned.
WHOLE = LocalPattern.whole(TokenLayout(8, Grid(9, 12)), Window(3))
PATTERNS = {
    "text": WHOLE,
    "no-text": LocalPattern.whole(TokenLayout(0, Grid(9, 12)), Window(3)),
    "pooled": replace(WHOLE, pooled=6),
    "references": LocalPattern.whole(TokenLayout(8, Grid(9, 12), (Grid(4, 4),)), Window(3)),
    "all-of-references": replace(
        LocalPattern.whole(TokenLayout(8, Grid(9, 12), (Grid(4, 4),)), Window(3), references="all"), pooled=6
    ),
    "band": LocalPattern(TokenLayout(8, Grid(20, 13)), Window(4), Band(7, 12), Band(4, 15), text_queries=False),
}


class Recorder(NoDriver):
    """Keeps what each launch was given."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[list[object]] = []

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return lambda *arguments: self.launches.append([as_driver_sees(argument) for argument in arguments])


def as_driver_sees(argument: Any) -> object:
    """An argument without what differs from call to call: memory counts by its address, a descriptor by its fields."""
    if hasattr(argument, "data_ptr"):
        return argument.data_ptr()
    if type(argument).__name__ == "LazyDict":  # for who observes launches
        return argument.data
    if type(argument).__name__ == "TensorDescriptor":
        return {**vars(argument), "base": argument.base.data_ptr()}
    return argument


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    """One for all: a kernel that Triton has compiled keeps the launcher that it got."""
    recorder = Recorder()
    with no_card():
        triton.runtime.driver.set_active(recorder)
        yield recorder


@pytest.fixture
def driver(recorder: Recorder) -> Recorder:
    recorder.launches = []
    return recorder


def make_call(pattern: LocalPattern, offset: int = 0, *, return_lse: bool = False) -> AttentionCall:
    """Tensors of 2 heads of 16 within one packed one, which begins `offset` elements behind an aligned address."""
    tokens = [pattern.query_tokens, pattern.key_tokens, pattern.key_tokens, pattern.pooled, pattern.pooled]
    packed = torch.zeros(sum(tokens) * 32 + 8, dtype=torch.bfloat16)[offset : offset + sum(tokens) * 32]
    query, key, value, *pooled = packed.view(1, -1, 2, 16).transpose(1, 2).split(tokens, dim=2)
    return AttentionCall(
        query, key, value, pattern, 0.3, pooled=Pooled(*pooled) if pattern.pooled else None, return_lse=return_lse
    )


def launches_of(driver: Recorder, run: Callable[[], object]) -> list[list[object]]:
    driver.launches = []
    run()
    return driver.launches


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_later_launches_hand_over_what_the_first_one_did(
    driver: Recorder, monkeypatch: pytest.MonkeyPatch, pattern: LocalPattern, config: KernelConfig
) -> None:
    call, backend = make_call(replace(pattern), return_lse=not pattern.text_queries), TritonBackend()
    _keep_addresses(monkeypatch)
    backend.launch(call, config)
    by_triton = launches_of(driver, lambda: backend.launch(replace(call, pattern=replace(pattern)), config))
    assert len(by_triton) == len(pattern.query_grids) * len(pattern.windowed_key_grids)
    monkeypatch.setattr(type(launch_kernel()), "run", None)
    assert launches_of(driver, lambda: backend.launch(call, config)) == by_triton, "Triton's own launch is not asked"


def _keep_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors of the same shape, or made of the same ones, are at the same address."""
    kept: dict[object, Tensor] = {}
    new, joined = Tensor.new_empty, torch.cat
    monkeypatch.setattr(
        Tensor, "new_empty", lambda like, *size, **kind: kept.setdefault(size, new(like, *size, **kind))
    )
    monkeypatch.setattr(torch, "empty_like", lambda like, **_: kept.setdefault(like.shape, new(like, like.shape)))

    def cat(parts: tuple[Tensor, ...], dim: int) -> Tensor:
        return kept.setdefault(tuple(part.data_ptr() for part in parts), joined(parts, dim))

    monkeypatch.setattr(torch, "cat", cat)


def launch_kernel() -> Any:
    from clear_core.backends.triton import kernel

    return kernel.window_kernel


@pytest.mark.parametrize("offset", [1, 4])
def test_a_kernel_is_not_kept_for_tensors_that_are_not_aligned(driver: Recorder, offset: int) -> None:
    backend, pattern = TritonBackend(), replace(WHOLE)
    aligned, shifted = make_call(pattern), make_call(pattern, offset)
    kernels = []
    for call in (aligned, shifted, aligned, shifted):
        (found,) = launches_of(driver, lambda call=call: backend.launch(call, POINTERS))
        kernels.append(found[5])  # its metadata
    assert kernels[0] is kernels[2] and kernels[1] is kernels[3]
    assert kernels[0] is not kernels[1]


def test_a_kernel_is_kept_for_one_kind_of_tensors(driver: Recorder) -> None:
    """Whatever Triton compiles another kernel for, or passes another number for, is another launch."""
    backend, pattern = TritonBackend(), replace(WHOLE)
    call = make_call(pattern)
    others = {
        "nothing": call,
        "strides": replace(call, value=call.value.contiguous()),
        "dtype": replace(call, query=call.query.half(), key=call.key.half(), value=call.value.half()),
        "scale": replace(call, scale=0.4),
        "batch": replace(call, **{name: getattr(call, name).repeat(2, 1, 1, 1) for name in ("query", "key", "value")}),
        "lse": replace(call, return_lse=True),
        "configuration": call,
    }
    seen = []
    for name, other in others.items():
        backend.launch(other, replace(POINTERS, block=32) if name == "configuration" else POINTERS)
        seen.append(sum(isinstance(found, launch.Launch) for found in pattern._remembered.values()))
    assert seen == list(range(1, len(others) + 1))


def test_a_triton_that_is_not_known_launches_itself(driver: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    kind = type(launch_kernel())
    run = kind.run
    monkeypatch.setattr(kind, "run", lambda *given, **options: (asked.append(0), run(*given, **options))[1])
    monkeypatch.setattr(launch, "triton_version", lambda: (3, 99))
    call = make_call(replace(WHOLE))
    for _ in range(3):
        TritonBackend().launch(call, POINTERS)
    assert len(asked) == len(driver.launches) == 3


def test_a_launch_keeps_no_tensor(driver: Recorder) -> None:
    pattern = replace(WHOLE)
    call = make_call(pattern)
    for config in CONFIGS.values():
        for _ in range(2):
            TritonBackend().launch(call, config)
    storage = weakref.ref(call.query.untyped_storage())
    alive = [weakref.ref(tensor) for tensor in (call.query, call.key, call.value)]
    del call
    gc.collect()
    assert pattern._remembered and not any(tensor() is not None for tensor in alive) and storage() is None
