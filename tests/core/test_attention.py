"""Backends against the definition and against each other."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clear_core.attention import local_attention
from clear_core.backends import AUTO, BACKENDS, BackendError, backend_names, choose_backend
from clear_core.backends.masked import MaskedBackend
from clear_core.backends.sdpa.backend import SdpaBackend
from clear_core.backends.text import key_splits
from clear_core.call import AttentionCall, AttentionResult
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled, pool_key_value
from clear_core.scale import softmax_scale
from clear_core.softmax import dense_attention, merge, split_attention
from clear_core.window import Window

from core import naive

HEAD_DIM = 8
ON_CPU = ("reference", "sdpa", "masked")
"""Every backend but triton, which `interpreted.py` tests."""


def tensors(pattern: LocalPattern, *, batch: int = 1, heads: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value for a pattern, float32."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, pattern.query_tokens, HEAD_DIM, generator=generator)
    key, value = torch.randn(2, batch, heads, pattern.key_tokens, HEAD_DIM, generator=generator)
    return query, key, value


def relative(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


grids = st.builds(Grid, st.integers(1, 40), st.integers(1, 40))
layouts = st.builds(
    TokenLayout,
    st.sampled_from([0, 1, 7, 33]),
    grids,
    st.lists(st.builds(Grid, st.integers(1, 20), st.integers(1, 20)), max_size=2).map(tuple),
)


@given(
    layout=layouts,
    radius=st.integers(1, 60),
    view=st.sampled_from(["window", "all"]),
    batch=st.sampled_from([1, 3]),
    factor=st.sampled_from([1, 2, 4, 5]),
    lse=st.booleans(),
    seed=st.integers(0, 1000),
    budget=st.sampled_from([1, 100_000, 2**28]),
    band=st.booleans(),
)
def test_every_backend_is_the_reference(
    layout: TokenLayout,
    radius: int,
    view: str,
    batch: int,
    factor: int,
    lse: bool,
    seed: int,
    budget: int,
    band: bool,
) -> None:
    pattern = LocalPattern.whole(layout, Window(radius), references=view)
    query, key, value = tensors(pattern, batch=batch, seed=seed)
    pooled = None
    if factor > 1:
        image = slice(layout.text, layout.text + layout.image.tokens)
        weight = torch.rand(factor, factor, generator=torch.Generator().manual_seed(seed))
        pooled = pool_key_value(key[:, :, image], value[:, :, image], layout.image, weight)
        pattern = replace(pattern, pooled=pooled.tokens)
    if band:
        rows = Band(layout.image.height // 3, layout.image.height // 3 + 1)
        pattern = replace(pattern, query_rows=rows, text_queries=False)
        query = query[:, :, : pattern.query_tokens]
    results = [
        local_attention(
            query, key, value, pattern, scale=0.7, pooled=pooled, backend=name, return_lse=lse, budget=budget
        )
        for name in ON_CPU
    ]
    for result in results[1:]:
        assert relative(result.out, results[0].out) < 1e-5
        if lse:
            torch.testing.assert_close(result.lse, results[0].lse, rtol=1e-5, atol=1e-5)
        else:
            assert result.lse is None


@pytest.mark.parametrize("backend", backend_names()[1:])
@pytest.mark.parametrize("view", ["window", "all"])
def test_backends_are_the_definition(backend: str, view: str) -> None:
    layout = TokenLayout(3, Grid(9, 13), (Grid(9, 13), Grid(5, 20)))
    pattern = LocalPattern.whole(layout, Window(4), references=view)
    query, key, value = tensors(pattern, batch=2)
    call = AttentionCall(query, key, value, pattern, scale=1 / sqrt(HEAD_DIM))
    if choose_refusal(call, backend):
        with pytest.raises(BackendError, match=backend):
            choose_backend(call, backend)
        return
    expected = naive.attention(query, key, value, naive.visible(layout, 4, view), 1 / sqrt(HEAD_DIM))
    assert relative(local_attention(query, key, value, pattern, backend=backend).out, expected) < 1e-5


def choose_refusal(call: AttentionCall, name: str) -> str:
    try:
        choose_backend(call, name)
    except BackendError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_twice_pytorchs_own(dtype: torch.dtype) -> None:
    pattern = LocalPattern.whole(TokenLayout(20, Grid(24, 37)), Window(6))
    query, key, value = (x.to(dtype) for x in tensors(pattern))
    expected = local_attention(query.double(), key.double(), value.double(), pattern, backend="reference").out
    bias = torch.zeros(pattern.mask().shape, dtype=dtype).masked_fill(~pattern.mask(), -torch.inf)
    own = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
    for backend in ON_CPU:
        out = local_attention(query, key, value, pattern, backend=backend).out
        assert out.dtype == dtype
        assert relative(out, expected) <= 2 * relative(own, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_a_mask_is_honoured_exactly(shape: tuple[int, int], kind: str) -> None:
    layout = TokenLayout(5, Grid(21, 18), (Grid(6, 7),))
    pattern = LocalPattern.whole(layout, Window(5))
    query, key, value = tensors(pattern, batch=3)
    size = (*shape, pattern.query_tokens, pattern.key_tokens)
    mask = torch.randn(size, generator=torch.Generator().manual_seed(1))
    mask = mask > -0.5 if kind == "bool" else mask
    # An oracle that knows nothing of windows: PyTorch's dense attention under both masks at once.
    window = torch.zeros(pattern.mask().shape).masked_fill(~pattern.mask(), -torch.inf)
    extra = torch.zeros(size).masked_fill(~mask, -torch.inf) if kind == "bool" else mask
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=window + extra).transpose(1, 2).flatten(2)
    for backend in ON_CPU:
        for budget in (1, 2**28):
            out = local_attention(query, key, value, pattern, mask=mask, backend=backend, budget=budget).out
            assert relative(out, expected) < 1e-5


def test_a_key_mask_that_broadcasts_over_queries_is_honoured() -> None:
    pattern = LocalPattern.whole(TokenLayout(4, Grid(20, 19)), Window(3))
    query, key, value = tensors(pattern)
    mask = torch.randn(1, 1, 1, pattern.key_tokens)
    results = [local_attention(query, key, value, pattern, mask=mask, backend=name).out for name in ON_CPU]
    for result in results[1:]:
        assert relative(result, results[0]) < 1e-5


def test_strided_views_give_what_their_copies_give() -> None:
    pattern = LocalPattern.whole(TokenLayout(6, Grid(18, 23)), Window(5))
    packed = torch.randn(2, pattern.key_tokens, 3, 2, HEAD_DIM)
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    strided = local_attention(query, key, value, pattern, backend="sdpa").out
    copied = local_attention(query.contiguous(), key.contiguous(), value.contiguous(), pattern, backend="sdpa").out
    torch.testing.assert_close(strided, copied, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bands", [2, 3, 5])
def test_bands_of_rows_are_the_image_in_one(bands: int) -> None:
    layout, window = TokenLayout(6, Grid(17, 14)), Window(5)
    whole = LocalPattern.whole(layout, window)
    query, key, value = tensors(whole)
    expected = local_attention(query, key, value, whole, backend="reference").out
    text, width = layout.text, layout.image.width
    edges = [layout.image.height * i // bands for i in range(bands + 1)]
    images, texts = [], []
    for start, stop in pairwise(edges):
        rows = Band(start, stop)
        halo = rows.grown(window.halo, layout.image)
        pattern = LocalPattern(layout, window, rows, halo, text_queries=False)
        mine = slice(text + rows.start * width, text + rows.stop * width)
        near = slice(text + halo.start * width, text + halo.stop * width)
        keys, values = (torch.cat((x[:, :, :text], x[:, :, near]), dim=2) for x in (key, value))
        images.append(local_attention(query[:, :, mine], keys, values, pattern, backend="sdpa").out)
        # The text queries attend to each band's own rows once, and the text itself with the first.
        own = slice(0, mine.stop) if start == 0 else mine
        part = dense_attention(
            query[:, :, :text],
            key[:, :, own],
            value[:, :, own],
            1 / sqrt(HEAD_DIM),
            None,
            return_lse=True,
            budget=2**20,
        )
        texts.append(AttentionResult(part.out.transpose(1, 2).flatten(2), part.lse))
    out = torch.cat([merge(texts).out, *images], dim=1)
    assert relative(out, expected) < 1e-5


def test_merging_needs_the_log_sum_exp() -> None:
    with pytest.raises(ValueError, match="return_lse=True"):
        merge([AttentionResult(torch.zeros(1, 1, 2), None)])


@pytest.mark.parametrize("return_lse", [False, True])
def test_text_queries_over_parts_of_the_keys_are_the_reference(
    monkeypatch: pytest.MonkeyPatch, return_lse: bool
) -> None:
    """As on a GPU with more multiprocessors than the text has programs."""
    parts: list[int] = []

    def watched(*given: Any) -> AttentionResult | None:
        parts.append(given[-1])
        return split_attention(*given)

    monkeypatch.setattr("clear_core.backends.text.split_attention", watched)
    monkeypatch.setattr("clear_core.backends.text.multiprocessors", lambda _: 4)
    monkeypatch.setattr("clear_core.backends.text._FEWEST_KEYS", 50)
    pattern = LocalPattern.whole(TokenLayout(11, Grid(14, 15)), Window(4))
    query, key, value = tensors(pattern)
    results = [
        local_attention(query, key, value, pattern, backend=name, return_lse=return_lse)
        for name in ("reference", "sdpa")
    ]
    assert parts == [4]
    assert relative(results[1].out, results[0].out) < 1e-6
    if return_lse:
        torch.testing.assert_close(results[1].lse, results[0].lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "multiprocessors", "keys", "splits"),
    [
        (96, 132, 262_656, 3),  # H100, FLUX's text at 8192 px
        (96, 132, 4_608, 2),  # at 1024 px
        (96, 132, 2_000, 1),
        (96, 0, 262_656, 1),  # a CPU
        (24, 188, 262_656, 8),
        (264, 132, 262_656, 1),
        (0, 132, 262_656, 8),
    ],
)
def test_keys_are_split_where_the_gpu_has_more_to_give(
    blocks: int, multiprocessors: int, keys: int, splits: int
) -> None:
    assert key_splits(blocks, multiprocessors, keys) == splits


def test_keys_that_are_not_in_the_band_are_not_attended() -> None:
    layout = TokenLayout(0, Grid(8, 4))
    pattern = LocalPattern(layout, Window(2), Band(0, 2), Band(6, 8), text_queries=False)
    query, key, value = tensors(pattern)
    for backend in ON_CPU:
        result = local_attention(query, key, value, pattern, backend=backend, return_lse=True)
        assert result.lse is not None
        assert (result.out == 0).all()
        assert (result.lse == -torch.inf).all()


def test_proportional_attention_follows_the_length() -> None:
    assert softmax_scale(128, 4608, proportional=True) == pytest.approx(1 / sqrt(128))
    assert softmax_scale(128, 4608**2, proportional=True) == pytest.approx(sqrt(2 / 128))
    assert softmax_scale(128, 4608, proportional=True, down_factor=4) > softmax_scale(128, 4608, proportional=True)
    assert softmax_scale(64, 99) == pytest.approx(1 / 8)


def test_a_backend_that_cannot_run_says_why_and_is_never_replaced() -> None:
    layout = TokenLayout(1, Grid(4, 4))
    pattern = LocalPattern.whole(layout, Window(2), pooled=1)
    query, key, value = tensors(pattern)
    cell = torch.zeros(1, 2, 1, HEAD_DIM)
    mask = torch.zeros(1, 1, pattern.query_tokens, pattern.key_tokens)
    for backend in backend_names():
        with pytest.raises(BackendError, match="no exact meaning for down-sampled tokens|triton"):
            local_attention(query, key, value, pattern, mask=mask, pooled=Pooled(cell, cell), backend=backend)
    with pytest.raises(ValueError, match=r"unknown backend 'fast'; choose one of: auto, .*sdpa, reference"):
        local_attention(query, key, value, replace(pattern, pooled=0), backend="fast")


def test_every_backend_is_listed_with_its_reason() -> None:
    reasons = {backend.name: backend.unavailable() for backend in BACKENDS}
    assert tuple(reasons) == backend_names()[1:]
    assert reasons["sdpa"] is None
    assert reasons["reference"] is None
    assert all(reason is None or reason for reason in reasons.values())
    assert all(backend.summary for backend in BACKENDS)


@pytest.mark.parametrize(("side", "radius", "name"), [(16, 8, "masked"), (48, 8, "sdpa"), (48, 32, "masked")])
def test_auto_takes_the_backend_with_the_least_to_do(side: int, radius: int, name: str) -> None:
    pattern = LocalPattern.whole(TokenLayout(512, Grid(side, side)), Window(radius))
    tokens = torch.empty(1, 1, pattern.key_tokens, HEAD_DIM)
    choice = choose_backend(AttentionCall(tokens, tokens, tokens, pattern, scale=1.0))
    assert choice.backend.name == name
    assert re.fullmatch(r"about [\d.]+ of dense attention's time, measured on AMD EPYC", choice.reason)


def test_a_choice_names_what_would_have_been_faster_and_why_it_could_not() -> None:
    class Broken(MaskedBackend):
        def refusal(self, call: AttentionCall) -> str | None:
            return "it is broken"

    pattern = LocalPattern.whole(TokenLayout(512, Grid(16, 16)), Window(8))
    tokens = torch.empty(1, 1, pattern.key_tokens, HEAD_DIM)
    call = AttentionCall(tokens, tokens, tokens, pattern, scale=1.0)
    choice = choose_backend(call, AUTO, [SdpaBackend(), Broken()])
    assert choice.backend.name == "sdpa"
    assert choice.reason.endswith("; masked: it is broken")
    with pytest.raises(BackendError, match="No backend can run this attention call. masked: it is broken"):
        choose_backend(call, AUTO, [Broken()])


def test_in_training_a_backend_without_a_backward_is_refused() -> None:
    pattern = LocalPattern.whole(TokenLayout(9, Grid(12, 10)), Window(3))
    tokens = [torch.randn(1, 2, pattern.key_tokens, HEAD_DIM, requires_grad=True) for _ in range(3)]
    for name in ("reference", "triton"):
        assert not next(backend for backend in BACKENDS if backend.name == name).differentiable
    with pytest.raises(BackendError, match="reference: it computes no gradients"):
        local_attention(*tokens, pattern, backend="reference")
    found = [
        torch.autograd.grad(local_attention(*tokens, pattern, backend=n).out.square().sum(), tokens)
        for n in ("sdpa", "masked")
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert local_attention(*tokens, pattern, backend="reference").out.isfinite().all()


def test_masks_that_would_fill_the_memory_are_refused() -> None:
    pattern = LocalPattern.whole(TokenLayout(512, Grid(64, 64)), Window(8))
    tokens = torch.empty(1, 1, pattern.key_tokens, HEAD_DIM)
    with pytest.raises(BackendError, match="'masked' cannot.*would take 81 MB; it takes up to 32"):
        choose_backend(AttentionCall(tokens, tokens, tokens, pattern, scale=1.0), "masked")


@pytest.mark.parametrize("name", ON_CPU)
def test_what_a_backend_executes_holds_what_is_needed(name: str) -> None:
    pattern = LocalPattern.whole(TokenLayout(9, Grid(40, 30), (Grid(12, 17),)), Window(5))
    tokens = torch.empty(1, 1, pattern.key_tokens, HEAD_DIM)
    backend = choose_backend(AttentionCall(tokens, tokens, tokens, pattern, scale=1.0), name).backend
    executed = backend.executed_pairs(AttentionCall(tokens, tokens, tokens, pattern, scale=1.0))
    assert pattern.pairs() <= executed <= pattern.query_tokens * pattern.key_tokens


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k, v: (q[:, :, 1:], k, v), "17 queries and 17 keys"),
        (lambda q, k, v: (q, k, v[..., :4]), "must agree in batch, heads and head_dim"),
        (lambda q, k, v: (q[0], k[0], v[0]), r"must be \[batch, heads, tokens, head_dim\]"),
        (lambda q, k, v: (q.half(), k, v), "need one floating dtype"),
        (lambda q, k, v: (q, k, v, {"scale": float("nan")}), "scale must be a positive number, got nan"),
        (lambda q, k, v: (q, k, v, {"mask": torch.zeros(1, 1, 3, 3)}), "must broadcast to"),
        (lambda q, k, v: (q, k, v, {"budget": 0}), "at least 1 byte"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_their_shapes(change: object, words: str) -> None:
    pattern = LocalPattern.whole(TokenLayout(1, Grid(4, 4)), Window(2))
    query, key, value, *extra = change(*tensors(pattern))  # type: ignore[operator]
    with pytest.raises(ValueError, match=words):
        local_attention(query, key, value, pattern, **(extra[0] if extra else {}))
