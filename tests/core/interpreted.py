"""The triton backend in Triton's interpreter, held against the reference.

Run by `test_triton.py` in a process of its own: whether Triton interprets is settled once, when it is imported.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_core.backends import BackendError, choose_backend
from clear_core.backends.masked import MaskedBackend
from clear_core.backends.reference import ReferenceBackend
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import KernelConfig, config_for
from clear_core.backends.triton.launch import WindowKernel
from clear_core.backends.triton.self_test import KernelVariant
from clear_core.backends.triton.tile_plan import GridPair, tile_plan
from clear_core.call import AttentionCall
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern, ReferenceView
from clear_core.pooling import pool_key_value
from clear_core.window import Window

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton.py, which sets this"

POINTERS = KernelConfig((4, 8), (4, 4), 16, 4, 1, descriptors=False)
DESCRIPTORS = replace(POINTERS, descriptors=True)


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


def test_full_tiles_skip_the_mask() -> None:
    pattern = LocalPattern.whole(TokenLayout(3, Grid(15, 25)), Window(13))
    grids = GridPair(pattern.layout.image, pattern.query_rows, pattern.layout.image, pattern.key_rows)
    plan = tile_plan(grids, pattern.window, POINTERS.tile, POINTERS.box)
    assert 0 < plan.full_boxes < plan.boxes.shape[0]
    check(make_call(pattern), POINTERS)
    check(make_call(pattern), DESCRIPTORS)


@pytest.mark.parametrize(("dtype", "return_lse"), [(torch.float32, True), (torch.float16, False)])
def test_the_self_test_passes(dtype: torch.dtype, return_lse: bool) -> None:
    variant = KernelVariant(torch.device("cpu"), dtype, 16, return_lse)
    assert TritonBackend().self_test_failure(variant) is None


def test_a_kernel_that_fails_its_self_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_core.backends.triton.launch._LOG2_E", 1.0)
    failure = TritonBackend().self_test_failure(KernelVariant(torch.device("cpu"), torch.float16, 16, return_lse=True))
    assert failure is not None
    assert "its self-test failed on this card: relative error" in failure


def test_a_kernel_that_does_not_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(TritonBackend, "run", broken)
    failure = TritonBackend().self_test_failure(KernelVariant(torch.device("cpu"), torch.float32, 16, return_lse=False))
    assert failure == "its kernel does not run on this card (RuntimeError: no such instruction)"


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


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_the_tables_own_configurations_are_exact(capability: tuple[int, int]) -> None:
    pattern = LocalPattern.whole(TokenLayout(70, Grid(9, 21)), Window(6))
    check(make_call(pattern, factor=4), config_for(capability, 2))


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
    assert kernel._extra.key.data_ptr() == call.pooled.key.data_ptr()
    assert kernel._extra.value.data_ptr() == call.pooled.value.data_ptr()
