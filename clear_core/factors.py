"""What decides whether a cheaper attention keeps a model's image, measured on the queries, keys and values of a layer.

CLEAR (arXiv 2412.16112, section 3) names four factors. Here each is a number for every head of one layer at one
timestep, with p the softmax of dense attention and W the strategy's matrix (`Strategy.weights`), over the image's
queries:

| factor | number |
|---|---|
| locality | mass: the sum of p over the keys that W reads |
| formulation | total variation between a row of W and p renormalised over the keys that W reads: 0 for every mask |
| rank | exp of the entropy of sigma^2 / sum sigma^2, and how many sigma hold 99% of sum sigma^2, of W and of p |
| integrity | 1 - |K - U P K| / |K|, the same for V; where nothing is merged, the share of image tokens ever read |

P merges tokens (`Strategy.maps`), and U, its pseudo-inverse, expands them back as well as a linear map can. All
matrices are written out: 4 * heads * tokens^2 bytes each, 2 GB for FLUX.1 at 1024 px with all heads. `radius` has the
circle's factors in bounded memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import TokenLayout
from .strategies import Parameters, Strategy
from .strategies.base import softmax_rows

_ENERGY = 0.99  # of the sum of the squared singular values


class Rank(NamedTuple):
    """Each [heads]. entropy: the effective rank, 1 to the full rank. energy: singular values that hold 99%."""

    entropy: Tensor
    energy: Tensor


class Integrity(NamedTuple):
    """What is left of the image's keys and of its values, each [heads]: 1 for all of it."""

    key: Tensor
    value: Tensor


class Factors(NamedTuple):
    """The factors of one layer at one timestep, each [heads], means over batch and image queries.

    error: |strategy's output - dense output| / |dense output| of the image's queries.
    """

    mass: Tensor
    formulation: Tensor
    rank: Rank
    dense_rank: Rank
    integrity: Integrity
    error: Tensor


@torch.no_grad()
def measure(
    strategy: Strategy,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    parameters: Parameters,
    layer: int = 0,
) -> Factors:
    """All factors of a strategy in one layer; arguments as those of `Strategy.attend`."""
    image = layout.slices().image
    dense = softmax_rows(query[:, :, image], key)
    weights = strategy.weights(query, key, layout, parameters, layer)[:, :, image].expand_as(dense)
    out = strategy.attend(query, key, value, layout, parameters, layer)
    return Factors(
        captured_mass(dense, weights != 0),
        formulation_distance(weights, dense),
        effective_rank(weights),
        effective_rank(dense),
        _integrity(strategy, query, key, value, layout, parameters, weights),
        output_error(out[:, :, image], F.scaled_dot_product_attention(query[:, :, image], key, value)),
    )


def captured_mass(dense: Tensor, visible: Tensor) -> Tensor:
    """How much of the softmax falls on the visible keys: [heads], 0 to 1.

    dense: its rows [batch, heads, queries, keys]. visible: bool, broadcastable to the same.
    """
    return (dense * visible).sum(-1).mean((0, 2))


def formulation_distance(weights: Tensor, dense: Tensor) -> Tensor:
    """The total variation between rows of weights and the softmax renormalised over the keys that they read: [heads].

    Both [batch, heads, queries, keys]. Above 1 where weights are negative or their rows add up to more than 1.
    """
    same = dense * (weights != 0)
    same = same / same.sum(-1, keepdim=True).clamp_min(torch.finfo(dense.dtype).tiny)
    return ((weights - same).abs().sum(-1) / 2).mean((0, 2))


def effective_rank(matrix: Tensor) -> Rank:
    """The effective ranks of [batch, heads, queries, keys]."""
    return rank_of_energy(torch.linalg.svdvals(matrix.double()).square())


def rank_of_energy(energy: Tensor) -> Rank:
    """The effective ranks from squared singular values [batch, heads, values], the largest first."""
    share = energy / energy.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    # Singular values descend. One more than those after which less than 99% is reached.
    count = (share.cumsum(-1) < _ENERGY).sum(-1).clamp_max(share.shape[-1] - 1) + 1
    return Rank(entropy.exp().mean(0), count.double().mean(0))


def merged_integrity(tokens: Tensor, merge: Tensor) -> Tensor:
    """1 - |X - U P X| / |X| in the Frobenius norm: [heads], 0 to 1.

    tokens: X, [batch, heads, image tokens, head_dim]. merge: P, [batch or 1, heads or 1, slots, image tokens].
    """
    tokens, merge = tokens.double(), merge.double()
    kept = torch.linalg.pinv(merge) @ (merge @ tokens)
    return (1 - (tokens - kept).norm(dim=(2, 3)) / tokens.norm(dim=(2, 3))).mean(0)


def output_error(out: Tensor, dense: Tensor) -> Tensor:
    """|out - dense| / |dense| in the Frobenius norm: [heads]. Both [batch, heads, queries, head_dim]."""
    out, dense = out.double(), dense.double()
    return ((out - dense).norm(dim=(2, 3)) / dense.norm(dim=(2, 3))).mean(0)


def _integrity(
    strategy: Strategy,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    parameters: Parameters,
    weights: Tensor,
) -> Integrity:
    image = layout.slices().image
    maps = strategy.maps(query, key, layout, parameters)
    if maps is None:
        read = (weights[..., image] != 0).any(dim=2).double().mean((0, 2))
        return Integrity(read, read)
    return Integrity(merged_integrity(key[:, :, image], maps.key), merged_integrity(value[:, :, image], maps.value))
