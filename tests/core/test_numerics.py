"""No NaN leaves a backend if none came in, and a fully masked row is 0: on numbers at the edge of a dtype.

A case is one head's attention on one backend. CLEAR_NUMERIC_CASES sets how many the long test tries.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clear_core.attention import local_attention
from clear_core.backends import BackendError
from clear_core.call import as_bias
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled, pool_key_value
from clear_core.softmax import dense_attention, merge
from clear_core.window import Window

from core.test_attention import ON_CPU

CASES = int(os.environ.get("CLEAR_NUMERIC_CASES", "1000000"))
HEADS, HEAD_DIM = 2, 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0.0, 1e-30, 1e-7, 1.0, 300.0, 6e4, 1e9, 1e16)
SCALES = (1e-6, 1e-3, 0.35, 1.0, 100.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slowed down by a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Call:
    """One call: its tensors at the edge of what they can hold, and what is visible after everything."""

    query: Tensor
    key: Tensor
    value: Tensor
    pattern: LocalPattern
    scale: float
    mask: Tensor | None
    pooled: Pooled | None
    return_lse: bool
    budget: int

    def sees(self) -> Tensor:
        """bool [batch, heads, queries]: whether the query sees any key."""
        bias = torch.zeros(self.pattern.mask().shape).masked_fill_(~self.pattern.mask(), -math.inf)
        if self.mask is not None:
            bias = bias + as_bias(self.mask, self.query.dtype).float()
        visible = (bias > -math.inf).any(-1) if bias.shape[-1] else torch.zeros(bias.shape[:-1], dtype=torch.bool)
        return visible.expand(len(self.query), HEADS, -1)


def make_call(chance: random.Random) -> Call:
    """A small call of some kind; `chance` decides everything."""
    side = chance.choice((2, 3, 5, 9, 18))
    image = Grid(chance.randint(1, side), chance.randint(1, side))
    references = (Grid(chance.randint(1, 4), chance.randint(1, 4)),) if chance.random() < 0.2 else ()
    layout = TokenLayout(chance.choice((0, 0, 1, 5)), image, references)
    rows = None if chance.random() < 0.2 else Band(*sorted(chance.sample(range(image.height + 1), 2)))
    pattern = LocalPattern(
        layout,
        Window(chance.choice((1, 2, 5, 40))),
        image.rows,
        chance.choice((image.rows, image.rows, rows)),
        text_queries=chance.random() < 0.8,
        text_keys=chance.random() < 0.7,
        reference_keys=chance.random() < 0.7,
        references=chance.choice(("window", "all")),
    )
    dtype = chance.choice(DTYPES)
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    batch = chance.choice((1, 1, 3))

    def tokens(count: int) -> Tensor:
        # Each token of its own size, so that large ones meet small ones.
        exponents = torch.tensor([chance.choice(SIZES) for _ in range(4)])
        size = exponents[torch.randint(4, (batch, HEADS, count, 1), generator=generator)]
        signs = torch.randn(batch, HEADS, count, HEAD_DIM, generator=generator)
        largest = min(torch.finfo(dtype).max, 1e17)
        return (signs * size).clamp_(-largest, largest).to(dtype)

    query, key, value = tokens(pattern.query_tokens), tokens(pattern.key_tokens), tokens(pattern.key_tokens)
    mask = pooled = None
    kind = chance.choice(("none", "none", "bool", "additive", "rows", "pooled"))
    if kind == "pooled" and pattern.key_rows is not None:
        text = pattern.text_key_tokens
        grid = Grid(len(pattern.key_rows), image.width)
        part = slice(text, text + grid.tokens)
        factor = chance.choice((2, 3))
        weight = torch.randn(factor, factor, generator=generator)
        pooled = pool_key_value(key[:, :, part], value[:, :, part], grid, weight)
        pattern = replace(pattern, pooled=pooled.tokens)
    elif kind in ("bool", "additive", "rows"):
        queries = chance.choice((1, pattern.query_tokens))
        shape = (chance.choice((1, batch)), chance.choice((1, HEADS)), queries, pattern.key_tokens)
        visible = torch.rand(shape, generator=generator) < chance.choice((0.05, 0.5, 0.95))
        if kind == "rows":
            visible = visible[..., :1].expand(shape)
        if kind == "bool":
            mask = visible
        else:
            bias = torch.randn(shape, generator=generator) * chance.choice((1.0, 6e4))
            mask = bias.masked_fill(~visible, -math.inf)
    return Call(
        query,
        key,
        value,
        pattern,
        chance.choice(SCALES),
        mask,
        pooled,
        chance.random() < 0.4,
        chance.choice((1, 2**28)) if image.tokens < 40 else chance.choice((10**4, 2**28)),
    )


def check(call: Call) -> int:
    """Run every backend that can; how many cases that were."""
    sees = call.sees()
    cases = 0
    for backend in ON_CPU:
        try:
            result = local_attention(
                call.query,
                call.key,
                call.value,
                call.pattern,
                scale=call.scale,
                pooled=call.pooled,
                mask=call.mask,
                backend=backend,
                return_lse=call.return_lse,
                budget=call.budget,
            )
        except BackendError:
            continue
        cases += len(call.query) * HEADS
        out = result.out.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2)
        assert not out.isnan().any(), backend
        assert not out[~sees].any(), f"{backend}: a fully masked row must be 0"
        if call.return_lse:
            assert result.lse is not None
            assert not result.lse.isnan().any(), backend
            assert torch.equal(result.lse > -math.inf, sees), backend
            merged = merge([result, result])
            assert not merged.out.isnan().any(), backend
    return cases


@settings(max_examples=250)
@given(st.randoms())
def test_no_nan_comes_out_if_none_went_in(chance: random.Random) -> None:
    assert check(make_call(chance))


@pytest.mark.soak
def test_no_nan_in_a_million_cases() -> None:
    chance, calls, cases = random.Random(0), 0, 0
    while cases < CASES:
        state = chance.getstate()
        try:
            cases += check(make_call(chance))
        except AssertionError:
            chance.setstate(state)
            print(make_call(chance))
            raise
        calls += 1
    print(f"{cases:,} cases in {calls:,} calls")


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fully_masked_row_is_zero(backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a PyTorch whose kernels answer such a query with NaN, as they did up to 2.4."""
    own = F.scaled_dot_product_attention

    def old(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        out = own(query, key, value, attn_mask=attn_mask, **kwargs)
        return out if attn_mask is None else out.masked_fill((attn_mask == -math.inf).all(-1, keepdim=True), math.nan)

    monkeypatch.setattr(F, "scaled_dot_product_attention", old)
    pattern = LocalPattern.whole(TokenLayout(3, Grid(20, 9)), Window(4))
    query, key, value = (torch.randn(1, HEADS, pattern.key_tokens, HEAD_DIM).to(dtype) for _ in range(3))
    mask = torch.ones(1, 1, pattern.query_tokens, pattern.key_tokens, dtype=torch.bool)
    blind = [0, 1, 3, 50, 182]
    mask[:, :, blind] = False
    for lse in (False, True):
        result = local_attention(query, key, value, pattern, mask=mask, backend=backend, return_lse=lse)
        assert not result.out.isnan().any()
        assert [row for row in range(pattern.query_tokens) if not result.out[0, row].any()] == blind
        if result.lse is not None:
            assert (result.lse[0, :, blind] == -math.inf).all()


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("lse", [False, True])
def test_rows_without_visible_keys_in_their_band_are_zero(backend: str, lse: bool) -> None:
    # Queries are rows 0 to 7, keys rows 6 to 9, and the window reaches one row: the first rows are fully masked.
    pattern = LocalPattern(TokenLayout(0, Grid(20, 5)), Window(2), Band(0, 8), Band(6, 10))
    query, key, value = (torch.randn(1, HEADS, rows * 5, HEAD_DIM) for rows in (8, 4, 4))
    result = local_attention(query, key, value, pattern, backend=backend, return_lse=lse)
    assert not result.out[0, : 5 * 5].any()
    assert result.out[0, 5 * 5 :].all()


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("lse", [False, True])
def test_an_empty_batch_is_answered_with_an_empty_batch(backend: str, lse: bool) -> None:
    pattern = LocalPattern.whole(TokenLayout(3, Grid(6, 5)), Window(2))
    tokens = torch.empty(0, HEADS, pattern.key_tokens, HEAD_DIM)
    out = local_attention(tokens, tokens, tokens, pattern, backend=backend, return_lse=lse).out
    assert out.shape == (0, pattern.query_tokens, HEADS * HEAD_DIM)


def test_the_largest_numbers_of_float16_pool_to_numbers() -> None:
    largest = torch.finfo(torch.float16).max
    key = torch.full((1, 1, 16, HEAD_DIM), largest, dtype=torch.float16)
    pooled = pool_key_value(key, -key, Grid(4, 4), torch.full((2, 2), 0.9))
    assert (pooled.key == largest).all()
    assert (pooled.value == -largest).all()


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_mask_value_beyond_float16_is_not_infinite(backend: str) -> None:
    """-1e9 on every key alike changes nothing; as -inf it would hide them all, and 1e9 as inf would give NaN."""
    pattern = LocalPattern.whole(TokenLayout(3, Grid(6, 5)), Window(3))
    query, key, values = (torch.randn(1, HEADS, pattern.key_tokens, HEAD_DIM).half() for _ in range(3))
    plain = local_attention(query, key, values, pattern, backend=backend).out
    for amount in (-1e9, 1e9):
        mask = torch.full((1, 1, pattern.query_tokens, pattern.key_tokens), amount)
        out = local_attention(query, key, values, pattern, mask=mask, backend=backend).out
        torch.testing.assert_close(out, plain, rtol=0, atol=0.03)


def test_dense_attention_without_keys_is_nothing() -> None:
    query, none = torch.randn(1, HEADS, 4, HEAD_DIM), torch.empty(1, HEADS, 0, HEAD_DIM)
    for lse in (False, True):
        result = dense_attention(query, none, none, 1.0, torch.empty(1, 1, 4, 0), return_lse=lse, budget=2**20)
        assert not result.out.any()
