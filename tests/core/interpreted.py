"""The triton backend in Triton's interpreter, held against the reference.

Run by `test_triton.py` in a process of its own: whether Triton interprets is settled once, when it is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_core.backends import BackendError, choose_backend
from clear_core.backends.masked import MaskedBackend
from clear_core.backends.reference import ReferenceBackend
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import Chip, KernelConfig, chip_of, config_for, has_descriptors
from clear_core.backends.triton.launch import WindowKernel
from clear_core.backends.triton.self_test import KernelVariant, SelfTest
from clear_core.backends.triton.tile_plan import GridPair, tile_plan
from clear_core.call import AttentionCall, AttentionResult
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern, ReferenceView
from clear_core.pooling import pool_key_value
from clear_core.window import Window

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton.py, which sets this"

POINTERS = KernelConfig((4, 8), (4, 4), 16, 4, 1, descriptors=False)
DESCRIPTORS = replace(POINTERS, descriptors=True)


class OnTheSecond(torch.Tensor):
    """A tensor that says it is on the second GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:1")


def make_call(
    pattern: LocalPattern, *, batch: int = 1, factor: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> AttentionCall:
    """Random strided tensors [batch, 2 heads, tokens, 16], as a packed qkv projection gives them."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, pattern.query_tokens, 2, 16, generator=generator).transpose(1, 2)
    packed = torch.randn(batch, pattern.key_tokens, 2, 2, 16, generator=generator).permute(2, 0, 3, 1, 4)
    query, key, value = query.to(dtype), *packed.to(dtype)
    pooled = None
    if factor > 1:
        text = pattern.layout.text
        grid = Grid(len(pattern.key_rows), pattern.layout.image.width)
        weight = torch.rand(factor, factor, generator=generator)
        image = slice(text, text + grid.tokens)
        pooled = pool_key_value(key[:, :, image], value[:, :, image], grid, weight)
        pattern = replace(pattern, pooled=pooled.tokens)
    return AttentionCall(query, key, value, pattern, scale=0.3, pooled=pooled, return_lse=True)


def check(call: AttentionCall, config: KernelConfig, tolerance: float = 1e-5) -> None:
    expected, result = ReferenceBackend().run(call), TritonBackend().launch(call, config)
    error = (result.out.double() - expected.out.double()).norm() / expected.out.double().norm()
    assert error < tolerance
    torch.testing.assert_close(result.lse, expected.lse, rtol=1e-5, atol=1e-5)


@settings(max_examples=12)
@given(
    text=st.sampled_from([0, 1, 7, 33]),
    height=st.integers(1, 17),
    width=st.integers(1, 19),
    radius=st.integers(1, 24),
    factor=st.sampled_from([1, 3]),
    batch=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
    descriptors=st.booleans(),
)
def test_the_kernel_is_the_reference(
    text: int, height: int, width: int, radius: int, factor: int, batch: int, seed: int, descriptors: bool
) -> None:
    pattern = LocalPattern.whole(TokenLayout(text, Grid(height, width)), Window(radius))
    call = make_call(pattern, batch=batch, factor=factor, seed=seed)
    check(call, DESCRIPTORS if descriptors else POINTERS)


@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("text_queries", [True, False])
def test_queries_and_keys_may_be_bands(config: KernelConfig, text_queries: bool) -> None:
    layout = TokenLayout(5, Grid(20, 13))
    pattern = LocalPattern(layout, Window(4), Band(7, 12), Band(4, 15), text_queries=text_queries)
    check(make_call(pattern), config)


@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("references", ["window", "all"])
@pytest.mark.parametrize("factor", [1, 2])
def test_reference_images_of_other_sizes(config: KernelConfig, references: ReferenceView, factor: int) -> None:
    layout = TokenLayout(5, Grid(14, 11), (Grid(7, 18), Grid(9, 3)))
    check(make_call(LocalPattern.whole(layout, Window(4), references=references), factor=factor), config)


def test_text_over_parts_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_core.backends.text.key_splits", lambda *_: 3)
    check(make_call(LocalPattern.whole(TokenLayout(9, Grid(5, 8)), Window(3)), batch=2), POINTERS)


def test_full_tiles_skip_the_mask() -> None:
    pattern = LocalPattern.whole(TokenLayout(3, Grid(15, 25)), Window(13))
    grids = GridPair(pattern.layout.image, pattern.query_rows, pattern.layout.image, pattern.key_rows)
    plan = tile_plan(grids, pattern.window, POINTERS.tile, POINTERS.box)
    assert 0 < plan.full_boxes < plan.boxes.shape[0]
    check(make_call(pattern), POINTERS)
    check(make_call(pattern), DESCRIPTORS)


@pytest.mark.parametrize(
    ("dtype", "heads", "return_lse"),
    [(torch.float32, 1, True), (torch.float16, 2, False), (torch.float16, 3, True)],
)
def test_the_self_test_passes(dtype: torch.dtype, heads: int, return_lse: bool) -> None:
    variant = KernelVariant(torch.device("cpu"), dtype, 16, heads, return_lse)
    assert TritonBackend().self_test_failure(variant) is None


def test_the_self_test_is_of_what_the_call_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[KernelVariant] = []
    monkeypatch.setattr(TritonBackend, "self_test_failure", lambda _, variant: asked.append(variant))
    pattern = LocalPattern.whole(TokenLayout(2, Grid(4, 4)), Window(2))
    tokens = torch.zeros(1, 24, pattern.key_tokens, 16, dtype=torch.float16).as_subclass(OnTheSecond)
    for lse in (False, True):
        TritonBackend().refusal(AttentionCall(tokens, tokens, tokens, pattern, scale=1.0, return_lse=lse))
    device = torch.device("cuda:1")
    assert asked == [KernelVariant(device, torch.float16, 16, 24, lse) for lse in (False, True)]


HALF = KernelVariant(torch.device("cpu"), torch.float16, 16, 2, return_lse=True)


def test_a_kernel_that_fails_its_self_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_core.backends.triton.launch.LOG2_E", 1.0)
    failure = TritonBackend().self_test_failure(HALF)
    assert failure is not None
    assert "its self-test failed on this card: relative error" in failure


def spoiled(spoil: Callable[[AttentionCall, AttentionResult], None]) -> str | None:
    """What the self-test says to a kernel that is right but for what `spoil` does to its result."""

    def run(call: AttentionCall) -> AttentionResult:
        result = ReferenceBackend().run(call)
        spoil(call, result)
        return result

    return SelfTest.of(run).failure(HALF)


def edge(index: int, *, columns: bool = False) -> Callable[[AttentionCall, AttentionResult], None]:
    """The answers of one row or column of the image are half a percent too large."""

    def spoil(call: AttentionCall, result: AttentionResult) -> None:
        (grid,) = call.pattern.query_grids
        image = result.out[:, grid.span].unflatten(1, grid.shape)
        (image[:, :, index] if columns else image[:, index]).mul_(1.005)

    return spoil


def test_the_self_test_sees_what_is_wrong_in_few_queries() -> None:
    assert spoiled(lambda *_: None) is None
    for spoil, where in (
        (edge(0), "the top edge"),
        (edge(-1), "the bottom edge"),
        (edge(0, columns=True), "the left edge"),
        (edge(-1, columns=True), "the right edge"),
    ):
        failure = spoiled(spoil)
        assert (failure is not None and f"in {where}, allowed" in failure) or (failure and "the corners" in failure)

    def text_in_base_2(call: AttentionCall, result: AttentionResult) -> None:
        assert result.lse is not None
        result.lse[:, :, call.pattern.query_slices.text] *= 1.4427

    failure = spoiled(text_in_base_2)
    assert failure is not None and "in the log-sum-exp of the text" in failure

    def not_a_number(_: AttentionCall, result: AttentionResult) -> None:
        result.out[0, -1, 0] = torch.nan

    failure = spoiled(not_a_number)
    assert failure is not None and "relative error nan" in failure


def test_a_kernel_that_does_not_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(TritonBackend, "launch", broken)
    failure = TritonBackend().self_test_failure(HALF)
    assert failure == "its kernel does not run on this card (RuntimeError: no such instruction)"


@pytest.mark.parametrize("words", ["Triton Error [CUDA]: out of memory", "CUDA error: unspecified launch failure"])
def test_a_failure_that_passes_is_not_remembered(words: str) -> None:
    failures = [RuntimeError(words)]

    def run(call: AttentionCall) -> AttentionResult:
        if failures:
            raise failures.pop()
        return ReferenceBackend().run(call)

    test = SelfTest.of(run)
    assert test.failure(HALF) == f"its self-test could not run this time (RuntimeError: {words})"
    assert test.failure(HALF) is None


def test_no_room_for_the_self_test_is_an_out_of_memory_error() -> None:
    """Which the caller answers by making room and trying again."""

    def run(_: AttentionCall) -> AttentionResult:
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError):
        SelfTest.of(run).failure(HALF)


@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS], ids=["pointers", "descriptors"])
def test_half_precision_is_no_worse_than_twice_pytorchs_own(config: KernelConfig) -> None:
    call = make_call(LocalPattern.whole(TokenLayout(20, Grid(11, 14)), Window(5)), dtype=torch.float16)
    exact = replace(call, query=call.query.double(), key=call.key.double(), value=call.value.double())
    expected = ReferenceBackend().run(exact).out
    own = MaskedBackend().run(replace(call, return_lse=False)).out
    out = TritonBackend().launch(call, config).out
    assert out.dtype == torch.float16
    assert (out.double() - expected).norm() <= 2 * (own.double() - expected).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_nan_comes_of_large_numbers_or_fully_masked_rows(dtype: torch.dtype) -> None:
    # Queries are rows 0 to 7, keys rows 6 to 9, and the window reaches one row: the first rows are fully masked.
    pattern = LocalPattern(TokenLayout(0, Grid(20, 5)), Window(2), Band(0, 8), Band(6, 10))
    call = make_call(pattern)
    query, key, value = ((tensor.sign() * 6e4).to(dtype) for tensor in (call.query, call.key, call.value))
    result = TritonBackend().launch(replace(call, query=query, key=key, value=value), POINTERS)
    assert result.lse is not None
    assert result.out.isfinite().all()
    assert not result.out[:, : 5 * 5].any() and (result.lse[..., : 5 * 5] == -torch.inf).all()
    assert result.lse[..., 5 * 5 :].isfinite().all()


@pytest.mark.parametrize(
    "chip",
    [
        Chip((8, 0)),
        Chip((8, 9), triton=(3, 6)),
        Chip((9, 0)),
        Chip((9, 0), triton=(3, 6)),
        Chip((9, 0), descriptors=False),
        Chip(amd="gfx1100"),
    ],
    ids=str,
)
def test_the_tables_own_configurations_are_exact(chip: Chip) -> None:
    pattern = LocalPattern.whole(TokenLayout(70, Grid(9, 21)), Window(6))
    check(make_call(pattern, factor=4), config_for(chip, 2))


def test_what_it_cannot_do_is_refused_in_words() -> None:
    pattern = LocalPattern.whole(TokenLayout(2, Grid(4, 4)), Window(2))
    call = make_call(pattern)
    assert TritonBackend().refusal(call) is None
    mask = torch.zeros(1, 1, pattern.query_tokens, pattern.key_tokens)
    with pytest.raises(BackendError, match="'triton' cannot.*it has no attention mask"):
        choose_backend(replace(call, mask=mask), "triton")
    narrow = replace(call, query=call.query[..., :12], key=call.key[..., :12], value=call.value[..., :12])
    with pytest.raises(BackendError, match="head_dim is 12; it has 16, 32, 64, 128"):
        choose_backend(narrow, "triton")
    with pytest.raises(BackendError, match="the radius is 2049; it has up to 2048"):
        choose_backend(make_call(replace(pattern, window=Window(2049))), "triton")
    with pytest.raises(BackendError, match="the softmax scale is 1e-07"):
        choose_backend(replace(call, scale=1e-7), "triton")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TritonBackend().unavailable() == "there is no GPU that Triton can use"


def test_pooled_keys_are_read_where_they_are() -> None:
    """Bands share them: a copy for every band would be 402 MB a layer at 8192 px."""
    layout = TokenLayout(5, Grid(8, 12))
    call = make_call(LocalPattern.whole(layout, Window(3)), factor=4)
    kernel = WindowKernel(call, POINTERS)
    assert call.pooled is not None
    assert kernel._extra[0].data_ptr() == call.pooled.key.data_ptr()
    assert kernel._extra[1].data_ptr() == call.pooled.value.data_ptr()


def test_a_triton_without_descriptors_reads_by_computed_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch 2.7 brings it, the first for RTX 50xx. Nothing may import what that Triton does not have."""
    monkeypatch.setattr("clear_core.backends.triton.config.has_descriptors", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    monkeypatch.setitem(sys.modules, "triton.tools.tensor_descriptor", None)
    config = config_for(chip_of(torch.device("cuda")), 2)
    assert not config.descriptors
    check(make_call(LocalPattern.whole(TokenLayout(3, Grid(5, 7)), Window(3))), config)


def test_this_tritons_descriptors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_descriptors() == (tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 4))
    monkeypatch.setitem(sys.modules, "triton.tools", None)
    monkeypatch.delitem(sys.modules, "triton.tools.tensor_descriptor", raising=False)
    assert not has_descriptors()


def test_it_launches_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on the second GPU while the first is the current one; the launch is only recorded."""
    current = [0]
    launched: list[int] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            current.append(self.device.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    class Recorded:
        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            return lambda *_, **__: launched.append(current[-1])

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr("clear_core.backends.triton.kernel.window_kernel", Recorded())
    pattern = LocalPattern.whole(TokenLayout(2, Grid(4, 4)), Window(2))
    grid = pattern.layout.image
    plan = tile_plan(GridPair(grid, grid.rows, grid, grid.rows), pattern.window, POINTERS.tile, POINTERS.box)
    tokens = torch.zeros(1, 2, pattern.key_tokens, 16).as_subclass(OnTheSecond)
    kernel = WindowKernel(AttentionCall(tokens, tokens, tokens, pattern, scale=1.0), POINTERS)
    (image,) = pattern.query_grids
    kernel.launch(image, image, plan, AttentionResult(torch.empty(1, grid.tokens, 32), None), lists=True)
    assert launched == [1] and current == [0]
