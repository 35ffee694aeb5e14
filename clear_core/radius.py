"""Which radius is enough: how much circles keep of one layer's dense attention, in bounded memory.

`factors` writes out all matrices of a layer. Here the rows of some image queries are computed, a few at a time, so that
a layer of any model can be measured where it runs. With all rows the numbers are those of `factors`.

Effective ranks are those of the matrix of these rows, from the eigenvalues of its Gram matrix W W^T, which are the
squares of its singular values: at most the number of rows, and comparable between matrices of the same rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .call import DEFAULT_BUDGET
from .factors import Factors, Integrity, Rank, captured_mass, formulation_distance, output_error, rank_of_energy
from .layout import Grid, TokenLayout, same_place
from .pattern import ReferenceView
from .strategies.base import wide
from .weights import LARGEST_RADIUS

_COPIES = 6  # of a block of scores, in `circle_factors`: scores, both softmaxes, and what is made of them
_ALWAYS = -1  # the squared distance of a key that every query sees


@dataclass(frozen=True, slots=True, eq=False)
class SampledLayer:
    """One layer's attention at one timestep, and the queries that are measured.

    query, key, value: [heads, tokens, head_dim] after RoPE, in the order of `layout`; any floating dtype, computed in
        float32 or better.
    rows: int64 [rows] on the CPU, the image tokens whose queries are measured; see `sampled_rows`.
    scale: the factor on the scores.
    references: how the circle sees reference images, as in `LocalPattern`.
    budget: bytes of temporary memory. One head's keys and values in float32, and one row of its scores (its sampled
        rows in `circle_factors`), are always taken.
    check: called before each block of work; what it raises ends the measurement.

    Raises ValueError for tensors that do not fit the layout.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    layout: TokenLayout
    rows: Tensor
    scale: float
    references: ReferenceView = "window"
    budget: int = DEFAULT_BUDGET
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        for name in ("query", "key", "value"):
            shape = tuple(getattr(self, name).shape)
            if len(shape) != 3 or shape[1] != self.layout.tokens:
                raise ValueError(
                    f"{name} is {shape}; allowed is [heads, {self.layout.tokens}, head_dim] for {self.layout}"
                )

    def head_blocks(self, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Sampled queries [heads, sampled, head_dim], keys and values [heads, tokens, head_dim] of some heads.

        rows: of scores that are held at a time for each head, `_COPIES` times.
        """
        size = self._item_bytes * self.layout.tokens
        count = max(1, self.budget // 2 // (size * (2 * self.key.shape[2] + _COPIES * rows)))
        at = self.layout.text + self.rows.to(self.query.device)
        for start in range(0, len(self.query), count):
            self.check()
            heads = slice(start, start + count)
            yield wide(self.query[heads, at]), wide(self.key[heads]), wide(self.value[heads])

    def row_blocks(self, heads: int) -> Iterator[slice]:
        """Parts of the sampled rows whose scores fit the budget for so many heads."""
        count = max(1, self.budget // 2 // (self._item_bytes * self.layout.tokens * _COPIES * heads))
        for start in range(0, len(self.rows), count):
            self.check()
            yield slice(start, start + count)

    def distances(self, rows: slice) -> Tensor:
        """dy² + dx² from each of some sampled queries to each key: int32 [rows, tokens], -1 for keys always visible."""
        layout, device = self.layout, self.query.device
        tokens, image = self.rows[rows], layout.image
        out = torch.full((len(tokens), layout.tokens), _ALWAYS, dtype=torch.int32, device=device)
        start = layout.text
        for grid in layout.grids if self.references == "window" else layout.grids[:1]:
            y = same_place(tokens // image.width, image.height, grid.height)[:, None] - torch.arange(grid.height)
            x = same_place(tokens % image.width, image.width, grid.width)[:, None] - torch.arange(grid.width)
            squares = y.square().int().to(device)[:, :, None] + x.square().int().to(device)[:, None, :]
            out[:, start : start + grid.tokens] = squares.flatten(1)
            start += grid.tokens
        return out

    @property
    def _item_bytes(self) -> int:
        return max(4, self.query.element_size())


class RadiusCurve(NamedTuple):
    """Mass and output error of circles in one layer at one timestep, each float64 [radii, heads] on the CPU."""

    radii: tuple[int, ...]
    mass: Tensor
    error: Tensor

    def passes(self, least_mass: float, most_error: float) -> Tensor:
        """Whether a radius passes both bounds in a head: bool [radii, heads]."""
        return (self.mass >= least_mass) & (self.error <= most_error)

    @property
    def mean(self) -> RadiusCurve:
        """The means over heads, as the curve of one head."""
        return RadiusCurve(self.radii, self.mass.mean(1, keepdim=True), self.error.mean(1, keepdim=True))


def sampled_rows(grid: Grid, count: int, seed: int) -> Tensor:
    """So many of the image's tokens, or all, drawn without replacement: int64 [count], ascending."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(grid.tokens, generator=generator)[:count].sort().values


def candidate_radii(grid: Grid) -> tuple[int, ...]:
    """The radii that can be recommended: all that leave something out, up to the largest that the nodes take."""
    covering = isqrt((grid.height - 1) ** 2 + (grid.width - 1) ** 2) + 1
    return tuple(range(1, min(LARGEST_RADIUS, covering - 1) + 1))


@torch.no_grad()
def radius_curve(layer: SampledLayer, radii: Sequence[int]) -> RadiusCurve:
    """How much circles of some radii capture of one layer's softmax, and how far they change its output.

    mass: the sum of the softmax over the keys in the circle, and text. error: |circle's output - dense output| /
    |dense output|. Of the sampled queries.
    """
    masses, errors = [], []
    for query, key, value in layer.head_blocks(rows=1):
        mass, error = query.new_zeros(2, len(radii), len(query))
        total = query.new_zeros(len(query))
        for rows in layer.row_blocks(len(query)):
            dense = (query[:, rows] @ key.mT * layer.scale).softmax(-1)
            distances, expected = layer.distances(rows), dense @ value
            total += expected.square().sum((1, 2))
            for index, radius in enumerate(radii):
                seen = dense * (distances < radius**2)
                share = seen.sum(-1, keepdim=True)
                mass[index] += share.sum((1, 2))
                error[index] += (seen @ value / share - expected).square().sum((1, 2))
        masses.append(mass.cpu().double() / len(layer.rows))
        errors.append((error.cpu().double() / total.cpu().double()).sqrt())
    return RadiusCurve(tuple(radii), torch.cat(masses, 1), torch.cat(errors, 1))


@torch.no_grad()
def circle_factors(layer: SampledLayer, radius: int) -> Factors:
    """All factors of the circle of one radius, of the sampled queries.

    integrity: of the sampled tokens, the share that a sampled query reads.
    """
    parts: list[tuple[Tensor, ...]] = []
    visible = layer.distances(slice(None)) < radius**2
    own = layer.layout.text + layer.rows.to(layer.query.device)
    for query, key, value in layer.head_blocks(rows=len(layer.rows)):
        scores = query @ key.mT * layer.scale
        dense = scores.softmax(-1)
        weights = scores.masked_fill_(~visible, -torch.inf).softmax(-1)
        numbers = (
            captured_mass(dense[None], visible),
            formulation_distance(weights[None], dense[None]),
            *_sampled_rank(weights),
            *_sampled_rank(dense),
            (weights[:, :, own] != 0).any(1).float().mean(1),
            output_error((weights @ value)[None].cpu(), (dense @ value)[None].cpu()),
        )
        parts.append(tuple(number.cpu().double() for number in numbers))
    mass, formulation, *ranks, read, error = (torch.cat(part) for part in zip(*parts, strict=True))
    return Factors(mass, formulation, Rank(*ranks[:2]), Rank(*ranks[2:]), Integrity(read, read), error)


def needed_radii(curves: Sequence[RadiusCurve], *, least_mass: float, most_error: float) -> tuple[int | None, ...]:
    """For each head the smallest radius that passes both bounds in every curve; None where none passes.

    curves: of the layers and timesteps that shall share a radius, all with the same radii and heads. Raises ValueError
    without curves, or where their radii differ.
    """
    if not curves or any(curve.radii != curves[0].radii for curve in curves):
        raise ValueError(
            f"curves have radii {[curve.radii for curve in curves]}; allowed is one curve or more, all alike"
        )
    passes = torch.stack([curve.passes(least_mass, most_error) for curve in curves]).all(0)
    radii = curves[0].radii
    return tuple(min((radii[i] for i in head.nonzero().flatten().tolist()), default=None) for head in passes.T)


def recommended_radius(curves: Sequence[RadiusCurve], *, least_mass: float, most_error: float) -> int | None:
    """The smallest radius whose mass and output error, means over heads, pass their bounds in every curve.

    None where none passes. Arguments and errors are those of `needed_radii`.
    """
    return needed_radii([curve.mean for curve in curves], least_mass=least_mass, most_error=most_error)[0]


def _sampled_rank(rows: Tensor) -> Rank:
    """The effective ranks of [heads, rows, keys]."""
    gram = (rows @ rows.mT).cpu().double()
    return rank_of_energy(torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)[None])
