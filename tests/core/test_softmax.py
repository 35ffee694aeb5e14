"""Dense attention in parts of queries and of keys, against softmax written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clear_core import softmax
from clear_core.call import AttentionResult
from clear_core.softmax import FusedKernels, dense_attention, explicit_attention, merge, split_attention

HEADS, QUERIES, KEYS, DIM = 2, 7, 5, 4
SCALE = 0.6


def tensors(batch: int = 3, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, heads, n, DIM, generator=generator) for n in (QUERIES, KEYS, KEYS))


def biases() -> dict[str, Tensor | None]:
    """Of every shape that broadcasts; in the last one the third query sees nothing."""
    generator = torch.Generator().manual_seed(1)

    def bias(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        return drawn.masked_fill_(drawn > 1, -math.inf)

    full = bias(3, HEADS, QUERIES, KEYS)
    full[:, :, 2] = -math.inf
    return {"none": None, "keys": bias(1, 1, 1, KEYS), "queries": bias(3, 1, QUERIES, KEYS), "full": full}


def written_out(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> AttentionResult:
    """One sum after another: out [batch, heads, queries, dim] and lse."""
    batch, heads, queries, dim = query.shape
    out = torch.zeros(batch, heads, queries, dim, dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    bias = torch.zeros(1) if bias is None else bias
    bias = bias.double().expand(batch, heads, queries, key.shape[2])
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                weights = [
                    math.exp(float(query[b, h, q].double() @ key[b, h, k].double()) * scale + float(bias[b, h, q, k]))
                    for k in range(key.shape[2])
                ]
                if total := sum(weights):
                    lse[b, h, q] = math.log(total)
                    out[b, h, q] = sum(w / total * v.double() for w, v in zip(weights, value[b, h], strict=True))
    return AttentionResult(out, lse)


def check(result: AttentionResult, expected: AttentionResult) -> None:
    torch.testing.assert_close(result.out.double(), expected.out, rtol=1e-5, atol=1e-6)
    if result.lse is not None:
        assert expected.lse is not None
        assert result.lse.dtype == torch.float32
        torch.testing.assert_close(result.lse.double(), expected.lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", biases())
@pytest.mark.parametrize("return_lse", [False, True])
def test_it_is_softmax_whatever_the_budget(kind: str, return_lse: bool) -> None:
    given, bias = tensors(), biases()[kind]
    expected = written_out(*given, SCALE, bias)
    for budget in (1, 3 * 4 * 3 * HEADS * KEYS, 2**20):
        result = dense_attention(*given, SCALE, bias, return_lse=return_lse, budget=budget)
        assert (result.lse is None) != return_lse
        check(result, expected)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_scores_are_held_for_as_many_queries_as_the_budget_has_room_for(
    monkeypatch: pytest.MonkeyPatch, batch: int, rows: int
) -> None:
    held: list[int] = []

    def watched(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        held.append(query.shape[2])
        return explicit_attention(query, *rest)

    monkeypatch.setattr(softmax, "explicit_attention", watched)
    bias = torch.zeros(1, 1, 1, KEYS)
    one_row = 4 * batch * KEYS  # float32, one head
    given = tensors(batch, heads=1)
    dense_attention(*given, SCALE, bias, return_lse=True, budget=rows * one_row + one_row - 1)
    assert held == [min(rows, QUERIES - start) for start in range(0, QUERIES, rows)]


def test_pytorchs_own_kernel_is_taken_where_it_gives_the_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists for the CPU in every PyTorch that ComfyUI takes; it needs queries, and knows no bias."""
    given = tensors()
    expected = written_out(*given, SCALE, None)

    def not_here(*_: object) -> None:
        raise AssertionError("the scores were written out")

    monkeypatch.setattr(softmax, "explicit_attention", not_here)
    check(dense_attention(*given, SCALE, None, return_lse=True, budget=1), expected)
    with pytest.raises(AssertionError, match="written out"):
        dense_attention(*given, SCALE, biases()["keys"], return_lse=True, budget=1)
    none = dense_attention(given[0][:, :, :0], *given[1:], SCALE, None, return_lse=True, budget=1)
    assert none.lse is not None
    assert (none.out.shape, none.lse.shape) == ((3, HEADS, 0, DIM), (3, HEADS, 0))


def test_only_fully_masked_rows_of_pytorchs_answer_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 0; and none at all where there is no bias."""
    query, key, value = tensors()
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: torch.full_like(q, 7.0))
    out = dense_attention(query, key, value, SCALE, biases()["full"], return_lse=False, budget=1).out
    assert (out[:, :, 2] == 0).all()
    assert (out[:, :, [0, 1, 3, 4, 5, 6]] == 7).all()
    assert (dense_attention(query, key, value, SCALE, None, return_lse=False, budget=1).out == 7).all()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("splits", [1, 2, 3, 5])
def test_parts_of_the_keys_that_run_side_by_side_are_all_of_them(batch: int, splits: int) -> None:
    query, key, value = tensors(batch)
    packed = torch.stack((key, value)).permute(0, 1, 3, 2, 4).contiguous().permute(0, 1, 3, 2, 4)
    for keys, values in ((key, value), (packed[0], packed[1])):
        result = split_attention(query, keys, values, SCALE, splits)
        assert result is not None
        check(result, written_out(query, key, value, SCALE, None))


def test_keys_are_not_copied_to_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a packed projection gives them; at 8192 px a copy would be 1.6 GB."""
    seen: list[bool] = []
    packed = torch.randn(1, 8, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)

    def find(query: Tensor, key: Tensor, value: Tensor) -> Any:
        seen.append(key.data_ptr() == packed[1].data_ptr() and value.data_ptr() == packed[2].data_ptr())
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    monkeypatch.setattr(softmax, "FUSED_KERNELS", FusedKernels(find))
    split_attention(*packed, SCALE, 4)
    assert seen[0]


def test_without_a_fused_kernel_nothing_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "FUSED_KERNELS", FusedKernels(lambda *_: None))
    assert split_attention(*tensors(), SCALE, 2) is None


@pytest.mark.parametrize("unit", [1.0, math.log2(math.e)], ids=["natural", "base 2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_sum_exp_of_another_base_is_converted(
    unit: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROCm's kernel before PyTorch 2.8 is not to be had here: PyTorch's own, its answer in base 2, stands for it."""
    calls: list[int] = []

    def kernel(*given: Any, **named: Any) -> tuple[Tensor, ...]:
        calls.append(given[0].shape[2])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given, **named)
        return out, lse * unit

    monkeypatch.setattr(softmax, "FUSED_KERNELS", FusedKernels(lambda *_: kernel))
    query, key, value = (tensor.to(dtype) for tensor in tensors())
    for _ in range(2):
        result = dense_attention(query, key, value, SCALE, None, return_lse=True, budget=1)
        expected = written_out(query, key, value, SCALE, None)
        assert result.lse is not None
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(result.lse.double(), expected.lse, rtol=tolerance, atol=tolerance)
    assert calls == [8, QUERIES, QUERIES], "it is found once"


def test_a_log_sum_exp_that_is_not_understood_is_not_used() -> None:
    def kernel(query: Tensor, *_: Tensor, scale: float) -> tuple[Tensor, ...]:
        return query, torch.full(query.shape[:3], 5.0 * scale)

    assert FusedKernels(lambda *_: kernel).attend(*tensors(), SCALE) is None


@pytest.mark.parametrize("return_lse", [False, True])
def test_without_keys_there_is_nothing(return_lse: bool) -> None:
    query, key, value = tensors()
    result = dense_attention(query, key[:, :, :0], value[:, :, :0], SCALE, None, return_lse=return_lse, budget=1)
    assert result.out.shape == query.shape and not result.out.any()
    if return_lse:
        assert result.lse is not None and result.lse.dtype == torch.float32
        assert result.lse.shape == query.shape[:3] and (result.lse == -math.inf).all()
    else:
        assert result.lse is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_keeps_the_dtype_and_counts_in_float32_or_better(dtype: torch.dtype) -> None:
    query, key, value = (x.to(dtype) for x in tensors())
    expected = written_out(query, key, value, SCALE, None)
    out, lse = explicit_attention(query, key, value, SCALE, None)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(out.double(), expected.out, rtol=tolerance, atol=tolerance)
    assert expected.lse is not None
    torch.testing.assert_close(lse.double(), expected.lse, rtol=1e-5, atol=1e-6)


def merged_heads(result: AttentionResult) -> AttentionResult:
    return AttentionResult(result.out.transpose(1, 2).flatten(2), result.lse)


def test_parts_of_the_keys_merge_into_all_of_them() -> None:
    """One of them is empty, and the third query sees nothing in any."""
    query, key, value = tensors()
    bias = biases()["full"]
    assert bias is not None
    parts = []
    for keys in (slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 5)):
        part = dense_attention(
            query, key[:, :, keys], value[:, :, keys], SCALE, bias[..., keys], return_lse=True, budget=1
        )
        parts.append(merged_heads(part))
    kept = [part.out.clone() for part in parts]
    check(merge(parts), merged_heads(written_out(query, key, value, SCALE, bias)))
    assert all(torch.equal(part.out, before) for part, before in zip(parts, kept, strict=True)), "an input was changed"


def test_a_merge_has_its_first_parts_dtype_and_is_exact_in_between() -> None:
    generator = torch.Generator().manual_seed(2)
    # Each part is the same number in bfloat16; a sum in bfloat16 of 64 of them would lose it.
    out = torch.randn(1, 3, HEADS * DIM, generator=generator).bfloat16()
    parts = [AttentionResult(out, torch.zeros(1, HEADS, 3)) for _ in range(64)]
    result = merge(parts)
    assert result.out.dtype == torch.bfloat16
    assert torch.equal(result.out, out)
    assert result.lse is not None
    torch.testing.assert_close(result.lse, torch.full((1, HEADS, 3), math.log(64)))
