"""Each factor separates what it is meant to separate, on one layer whose attention is local."""

from __future__ import annotations

import math

import pytest
import torch

from clear_core.factors import Factors, effective_rank, measure, merged_integrity
from clear_core.strategies import (
    BigBird,
    Circle,
    Linear,
    MeanCompression,
    ShiftedNeighbourhood,
    Sigmoid,
    SparseLinear,
    Strategy,
    Strided,
    Swin,
)

from core.local_layer import HEAD_DIM, HEADS, LAYOUT, local_layer

IMAGE = slice(LAYOUT.text, LAYOUT.tokens)


def factors(strategy: Strategy) -> Factors:
    return measure(strategy, *local_layer(), LAYOUT, strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image))


def test_locality_is_the_mass_that_a_mask_captures() -> None:
    """Sixty-odd of 240 image keys each: the circle takes more than fixed windows, and these more than a stride."""
    circle, swin, strided = (factors(strategy).mass for strategy in (Circle(5), Swin(8), Strided(2)))
    assert (circle > swin + 0.05).all() and (swin > strided + 0.05).all()
    assert circle[0] > circle[1] + 0.05, "head 0 is the more local one"
    for reads_all in (MeanCompression(2), Linear(), Circle(99)):
        torch.testing.assert_close(factors(reads_all).mass, torch.ones(HEADS))


def test_mass_is_the_sum_over_what_is_seen() -> None:
    query, key, _ = local_layer()
    total = torch.zeros(HEADS, dtype=torch.float64)
    for head in range(HEADS):
        for i in range(LAYOUT.image.tokens):
            row = (key[0, head].double() @ query[0, head, LAYOUT.text + i].double() / math.sqrt(HEAD_DIM)).softmax(0)
            seen = [
                (j // 20 - i // 20) ** 2 + (j % 20 - i % 20) ** 2 < 9 for j in range(LAYOUT.image.tokens)
            ]  # fmt: skip
            total[head] += row[: LAYOUT.text].sum() + row[LAYOUT.text :][torch.tensor(seen)].sum()
    torch.testing.assert_close(factors(Circle(3)).mass.double(), total / LAYOUT.image.tokens, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [Circle(5), ShiftedNeighbourhood(8), Swin(8), Strided(2), BigBird(4, drawn=1), SparseLinear(4, blocks=3)],
    ids=lambda strategy: strategy.name,
)
def test_a_mask_keeps_the_formulation(strategy: Strategy) -> None:
    assert (factors(strategy).formulation < 1e-6).all()


def test_other_formulations_are_at_a_distance() -> None:
    """Merged keys are softmax still, and nearer to it than linear attention, whose rows are flat."""
    merged, linear, sigmoid = (factors(strategy).formulation for strategy in (MeanCompression(2), Linear(), Sigmoid()))
    assert (merged > 0.02).all()
    assert (linear > merged + 0.1).all() and (linear <= 1).all()
    assert (sigmoid > 1e-3).all()


def test_the_distance_is_the_total_variation() -> None:
    query, key, _ = local_layer()
    image = (query[:, :, IMAGE] @ key.transpose(2, 3) / math.sqrt(HEAD_DIM)).softmax(-1)
    features = torch.nn.functional.elu(query[:, :, IMAGE]) + 1, torch.nn.functional.elu(key) + 1
    rows = features[0] @ features[1].transpose(2, 3)
    rows = rows / rows.sum(-1, keepdim=True)
    larger = (rows - image).clamp_min(0).sum(-1)  # of two distributions: half of the absolute differences
    torch.testing.assert_close(factors(Linear()).formulation, larger.mean((0, 2)), rtol=1e-4, atol=1e-5)


def test_linear_attention_has_the_rank_of_its_features() -> None:
    linear, circle = factors(Linear()), factors(Circle(3))
    for rank in linear.rank:
        assert (rank <= HEAD_DIM).all()
    for rank in circle.rank:
        assert (rank > 2 * HEAD_DIM).all()
    # A mask takes the smooth part away: its rows differ more than those of dense attention.
    assert (circle.rank.entropy > circle.dense_rank.entropy).all()
    torch.testing.assert_close(linear.dense_rank, circle.dense_rank)
    torch.testing.assert_close(factors(Circle(99)).rank.entropy, circle.dense_rank.entropy, rtol=1e-4, atol=0.0)
    # Merged to 60 slots and 5 text tokens.
    assert (
        torch.linalg.matrix_rank(MeanCompression(2).weights(*local_layer()[:2], LAYOUT, {})[:, :, IMAGE]) <= 65
    ).all()


def test_ranks_of_known_matrices() -> None:
    flat = torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]))
    # Energies .75, .24 and .01: two hold 99%.
    steep = torch.diag(torch.tensor([0.75, 0.24, 0.0101, 0.0]).sqrt())
    rank = effective_rank(torch.stack((flat, steep))[None])
    expected = math.exp(-sum(e * math.log(e) for e in (0.75 / 1.0001, 0.24 / 1.0001, 0.0101 / 1.0001)))
    torch.testing.assert_close(rank.entropy, torch.tensor([3.0, expected], dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert rank.energy.tolist() == [3.0, 3.0]
    assert effective_rank(torch.diag(torch.tensor([0.75, 0.245, 0.005]).sqrt())[None, None]).energy.tolist() == [2.0]
    assert effective_rank(torch.ones(1, 1, 3, 5)).energy.tolist() == [1.0]


def test_integrity_is_below_one_where_tokens_are_merged() -> None:
    for raw in (Circle(5), Swin(8), Strided(2), Linear()):
        assert all((kept == 1).all() for kept in factors(raw).integrity)
    merged = factors(MeanCompression(2)).integrity
    assert (merged.key > 0.2).all() and (merged.key < 0.95).all()
    # Values are noise, which a mean of four takes half of; neighbouring keys are alike.
    assert (merged.value < merged.key).all()
    torch.testing.assert_close(merged.value, torch.full((HEADS,), 1 - 0.75**0.5).double(), rtol=0.1, atol=0.0)
    coarser = factors(MeanCompression(4)).integrity
    assert (coarser.key < merged.key).all() and (coarser.value < merged.value).all()


def test_tokens_that_are_alike_are_merged_without_loss() -> None:
    merge = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])[None, None]
    alike = torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, -1.0]])[None, None]
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])[None, None]
    torch.testing.assert_close(merged_integrity(alike, merge), torch.ones(1).double())
    torch.testing.assert_close(merged_integrity(apart, merge), torch.zeros(1).double())


def test_integrity_of_a_mask_is_the_share_of_tokens_ever_read() -> None:
    strategy = SparseLinear(4, blocks=1)  # each of 15 blocks of queries reads one: some are read by none
    query, key, value = torch.randn(3, 1, HEADS, LAYOUT.tokens, HEAD_DIM, generator=torch.Generator().manual_seed(3))
    parameters = strategy.parameters(HEADS, HEAD_DIM, LAYOUT.image)
    weights = strategy.weights(query, key, LAYOUT, parameters)
    read = [[bool((weights[0, h, IMAGE, j] != 0).any()) for j in range(5, LAYOUT.tokens)] for h in range(HEADS)]
    share = torch.tensor(read).double().mean(1)
    assert (share < 1).all()
    found = measure(strategy, query, key, value, LAYOUT, parameters).integrity
    assert torch.equal(found.key, share) and torch.equal(found.value, share)
