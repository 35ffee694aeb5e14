"""The kernel for Hopper chips, whose barriers no compiler checks: its own source, on a machine that does.

`gluon_machine` runs it, exact to rounding; `happens_before` shows from what it did that no schedule hangs or overwrites
a buffer too early. Both must notice when a barrier is taken away.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

import clear_core.backends.triton as package
from clear_core.backends.reference import ReferenceBackend
from clear_core.backends.triton import hopper_launch
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import KernelConfig
from clear_core.backends.triton.self_test import KernelVariant, PassingFailure, SelfTest
from clear_core.call import AttentionCall
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern, ReferenceView
from clear_core.pooling import Pooled
from clear_core.window import Window

from core.gluon_machine import SOURCE, Machine, SynchronisationError, in_favour_of, randomly, schedules
from core.happens_before import problems

SQUARE = KernelConfig((8, 16), (8, 8), 64, 4, 3, descriptors=True, specialised=True)
WIDE = KernelConfig((8, 16), (8, 16), 128, 4, 2, descriptors=True, specialised=True)
HEAD_DIM = 16
Choose = Callable[[list[str]], int]

IMAGE = LocalPattern.whole(TokenLayout(70, Grid(11, 33)), Window(16), pooled=20)
BAND = LocalPattern(TokenLayout(3, Grid(40, 21)), Window(4), Band(13, 24), Band(10, 27), text_queries=False)
ALONE = LocalPattern.whole(TokenLayout(0, Grid(9, 20)), Window(3))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    yield
    torch.set_num_threads(threads)


@contextmanager
def emulated(choose: Choose, programs: int) -> Iterator[None]:
    module = Machine(choose).module()
    with (
        mock.patch.dict(sys.modules, {f"{package.__name__}.hopper_kernel": module}),
        mock.patch.object(package, "hopper_kernel", module, create=True),
        mock.patch.object(hopper_launch, "multiprocessors", return_value=programs),
    ):
        yield


def make_call(
    pattern: LocalPattern, *, batch: int = 1, heads: int = 2, dtype: torch.dtype = torch.float32
) -> AttentionCall:
    """Random strided tensors, as a projection gives them."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(batch, count, heads, HEAD_DIM, generator=generator).transpose(1, 2).to(dtype)

    query, key, value = tokens(pattern.query_tokens), tokens(pattern.key_tokens), tokens(pattern.key_tokens)
    pooled = Pooled(tokens(pattern.pooled), tokens(pattern.pooled)) if pattern.pooled else None
    scale = 1 / math.sqrt(HEAD_DIM)
    return AttentionCall(query, key, value, pattern, scale=scale, pooled=pooled, return_lse=True)


def check(call: AttentionCall, config: KernelConfig, tolerance: float = 1e-6) -> None:
    expected, result = ReferenceBackend().run(call), TritonBackend().launch(call, config)
    assert result.lse is not None and expected.lse is not None
    assert (result.out.float() - expected.out.float()).norm() < tolerance * expected.out.float().norm()
    torch.testing.assert_close(result.lse, expected.lse, rtol=1e-5, atol=max(tolerance, 1e-5))


@pytest.mark.parametrize("config", [SQUARE, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("pattern", [IMAGE, BAND, ALONE], ids=["image", "band", "alone"])
@pytest.mark.parametrize(("name", "choose"), schedules(), ids=lambda value: value if isinstance(value, str) else "")
def test_it_is_the_reference_under_every_schedule(
    name: str, choose: Choose, pattern: LocalPattern, config: KernelConfig
) -> None:
    with emulated(choose, programs=3):
        check(make_call(pattern), config)


REFERENCES = TokenLayout(5, Grid(6, 18), (Grid(9, 7), Grid(2, 3)))


@pytest.mark.parametrize("view", ["window", "all"])
@pytest.mark.parametrize("programs", [1, 4])
def test_references_of_other_sizes(view: ReferenceView, programs: int) -> None:
    with emulated(randomly(1), programs):
        check(make_call(LocalPattern.whole(REFERENCES, Window(3), references=view), batch=2), SQUARE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    with emulated(randomly(2), 2):
        check(make_call(IMAGE, dtype=dtype), WIDE, tolerance=2 * torch.finfo(dtype).eps)


def test_queries_that_see_nothing_have_zeros_and_a_log_sum_exp_of_minus_infinity() -> None:
    """Tiles with no box and no list: a band of queries, far from every key that is there."""
    pattern = LocalPattern(TokenLayout(0, Grid(60, 16)), Window(3), Band(0, 16), Band(12, 40), text_queries=False)
    with emulated(randomly(3), 2):
        check(make_call(pattern), SQUARE)


def test_a_self_test_that_could_not_run_is_asked_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process that takes seconds, and says nothing that is remembered."""
    asked: list[KernelVariant] = []
    backend = TritonBackend()
    usual = KernelConfig((8, 16), (8, 8), 64, 8, 3, descriptors=True)
    monkeypatch.setattr(backend, "_configs", SimpleNamespace(of=lambda _: (usual, WIDE)))
    monkeypatch.setattr(backend, "_specialised_test", SelfTest(lambda variant: (asked.append(variant), no_room())[1]))
    call = make_call(replace(ALONE))
    for _ in range(3):
        assert backend.config(call) == usual
        assert backend.remark(call) == "triton: not its kernel for Hopper chips, because no room"
    assert len(asked) == 1
    assert backend.config(make_call(replace(ALONE))) == usual and len(asked) == 2


def no_room() -> str:
    raise PassingFailure("no room")


# What the barriers guarantee


def trace(lists: Sequence[int], tiles: Sequence[tuple[int, int]], stages: int, machine: Machine) -> Machine:
    """Run one program over tiles of so many full and partial boxes. lists: text and extra tokens."""
    shape = (1, 1, 8, 16 * len(tiles), HEAD_DIM)
    grid, memory = torch.randn(shape), torch.randn(1, 1, 256, HEAD_DIM)

    def describe(tensor: torch.Tensor, *block: int) -> SimpleNamespace:
        whole = [1, 1, *block, HEAD_DIM]
        return SimpleNamespace(base=tensor, shape=tensor.shape, strides=tensor.stride(), block_shape=whole)

    counts = torch.tensor(tiles)
    ends = counts.sum(1).cumsum(0)
    ranges = torch.stack((ends - counts.sum(1), ends - counts[:, 1], ends)).int()
    boxes = torch.zeros(max(1, int(ends[-1])), 2, dtype=torch.int32)
    rows = (8, 16 * len(tiles))
    geometry = torch.tensor((*rows, *rows, 0, 0, 8, 8, len(tiles)), dtype=torch.int32)
    text, extra = lists
    kernel: Any = machine.module().hopper_kernel
    kernel[(1,)](
        *(describe(grid, 8, 8) for _ in range(3)),
        *(describe(memory, 64) for _ in range(4)),
        *(ranges, boxes, geometry, describe(torch.empty(shape), 8, 8), torch.empty(1, 1, 128 * len(tiles)), 0),
        *(*divmod(text, 64), *divmod(extra, 64), 3, 1.0, len(tiles)),
        *(1, HEAD_DIM, 8, 8, stages, 2, True),
        num_warps=4,
    )
    return machine


TILES = [(full, partial) for full, partial in product((0, 1, 3), (0, 1, 2))]


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("text", [0, 5, 133])
@pytest.mark.parametrize("extra", [0, 64, 133])
def test_no_schedule_hangs_or_overwrites(text: int, extra: int, stages: int) -> None:
    """For every mixture of lists and boxes, in every tile and from every tile to the next."""
    order = [*TILES, *TILES[::-2]]
    machine = trace((text, extra), order, stages, Machine(in_favour_of("partition 2", "copy")))
    traces = [partition.trace for partition in machine.partitions.values()]
    blocks = sum(max(1, -(-text // 64) + -(-extra // 64) + full + partial) for full, partial in order)
    assert sum(event[0] == "copy" for event in traces[2]) == 2 * blocks + 2 * len(order)
    assert problems(traces) == []


VALUES_WAIT = "    acc = warpgroup_mma_wait(0, [acc])\n"
VALUES_FREE = "    _free(ring[5], block - 1, STAGES)\n"
MUTANTS = {
    "no wait for an empty buffer": ("    mbarrier.wait(empty.index(slot), (turn & 1) ^ 1)\n", ""),
    "a wait for the wrong parity": ("(turn & 1) ^ 1)", "turn & 1)"),
    "no wait for the keys": ("    mbarrier.wait(key_full.index(block % STAGES), block // STAGES & 1)\n", ""),
    "no wait for the values": ("    mbarrier.wait(value_full.index(block % STAGES), block // STAGES & 1)\n", ""),
    "no wait for the queries": ("        mbarrier.wait(query_full.index(slot), turn // QUERY_STAGES & 1)\n", ""),
    "values free before their product": (f"{VALUES_WAIT}{VALUES_FREE}", f"{VALUES_FREE}{VALUES_WAIT}"),
    "values never free": (f"{VALUES_FREE}    acc = acc *", "    acc = acc *"),
    "one consumer counted": ("mbarrier.init(key_empty.index(i), 2)", "mbarrier.init(key_empty.index(i), 1)"),
    "a product too early": ("warpgroup_mma_wait(1, [product])", "warpgroup_mma_wait(2, [product])"),
    "queries free before the result is out": ("        tma.store_wait(0)\n", ""),
    "no fence before the result's copy": ("        fence_async_shared()\n        _copy_out", "        _copy_out"),
    "a block too many": ("block += gl.maximum(whole + rests + end - partial, 1)", "block += whole + rests + end + 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_barrier_taken_away_is_noticed(name: str) -> None:
    right = SOURCE.read_text(encoding="utf-8")
    wrong = right.replace(*MUTANTS[name])
    assert wrong != right
    noticed = False
    for _, choose in schedules():
        machine = Machine(choose, wrong)
        try:
            trace((70, 5), TILES, 2, machine)
        except SynchronisationError:
            noticed = True
            break
        noticed = noticed or problems([partition.trace for partition in machine.partitions.values()]) != []
    assert noticed
