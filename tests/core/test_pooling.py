"""Down-sampled tokens against the plain sum over each cell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clear_core.layout import Grid
from clear_core.pooling import mean_weight, pool, pooled_grid


@given(height=st.integers(1, 13), width=st.integers(1, 13), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_cell_is_the_weighted_sum_of_its_tokens(height: int, width: int, factor: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 3, height * width, 4, generator=generator)
    weight = torch.rand(factor, factor, generator=generator) + 0.1
    cells = pool(tokens, Grid(height, width), weight).reshape(2, 3, -(-height // factor), -(-width // factor), 4)
    image = tokens.reshape(2, 3, height, width, 4)
    for y in range(cells.shape[2]):
        for x in range(cells.shape[3]):
            part = image[:, :, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            used = weight[: part.shape[2], : part.shape[3]]
            expected = (part * used[:, :, None]).sum(dim=(2, 3)) * (weight.sum() / used.sum())
            torch.testing.assert_close(cells[:, :, y, x], expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_constant_is_the_constant_also_in_partial_cells() -> None:
    tokens = torch.full((1, 1, 7 * 6, 2), 3.0)
    torch.testing.assert_close(pool(tokens, Grid(7, 6), mean_weight(4)), torch.full((1, 1, 4, 2), 3.0))
    assert pooled_grid(Grid(7, 6), 4) == Grid(2, 2)


def test_partial_cells_copy_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU such a copy would wait for all work there, in every layer."""
    copied: list[torch.Size] = []
    to = torch.Tensor.to

    def watched(tensor: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        copied.append(tensor.shape)
        return to(tensor, *given, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.Tensor, "to", watched)
    pool(torch.zeros(1, 1, 42, 2), Grid(7, 6), mean_weight(4))
    assert copied == [torch.Size((4, 4)), torch.Size((1, 1, 2, 2, 2))], "the weight to the CPU, the result to its dtype"


def test_low_precision_tokens_are_summed_in_float32() -> None:
    tokens = torch.randn(1, 1, 64, 8).bfloat16()
    exact = pool(tokens.float(), Grid(8, 8), mean_weight(8))
    assert pool(tokens, Grid(8, 8), mean_weight(8)).dtype == torch.bfloat16
    torch.testing.assert_close(pool(tokens, Grid(8, 8), mean_weight(8)), exact.bfloat16())


def test_weights_that_cancel_leave_numbers() -> None:
    weight = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert torch.isfinite(pool(torch.randn(1, 1, 9, 2), Grid(3, 3), weight)).all()
    weight = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert torch.isfinite(pool(torch.randn(1, 1, 9, 2), Grid(3, 3), weight)).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be square, \[f, f\], got \(2, 3\)"):
        pool(torch.zeros(1, 1, 4, 2), Grid(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected 6 tokens for a grid of 2 x 3, got 4"):
        pool(torch.zeros(1, 1, 4, 2), Grid(2, 3), torch.zeros(2, 2))
