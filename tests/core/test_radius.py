"""Circles measured in bounded memory have the factors of the full matrices, and the smallest that passes is found."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clear_core.factors import measure
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern, ReferenceView
from clear_core.radius import (
    RadiusCurve,
    SampledLayer,
    candidate_radii,
    circle_factors,
    needed_radii,
    radius_curve,
    recommended_radius,
    sampled_rows,
)
from clear_core.strategies import Circle
from clear_core.window import Window

from core.local_layer import HEAD_DIM, HEADS, LAYOUT, local_layer

RADII = (1, 2, 3, 5, 8, 99)
ALL_ROWS = torch.arange(LAYOUT.image.tokens)
TINY = 1  # byte: one head and one row at a time


def layer(dtype: torch.dtype = torch.float64, rows: Tensor = ALL_ROWS, **options: Any) -> SampledLayer:
    query, key, value = (tensor[0].to(dtype) for tensor in local_layer())
    return SampledLayer(query, key, value, LAYOUT, rows, HEAD_DIM**-0.5, **options)


def naive(one: SampledLayer, radius: int) -> tuple[Tensor, Tensor]:
    """Mass and error of a circle from the written-out mask, for the sampled rows: each [heads]."""
    at = one.layout.text + one.rows
    seen = LocalPattern.whole(one.layout, Window(radius), references=one.references).mask()[at]
    query, key, value = one.query[:, at].double(), one.key.double(), one.value.double()
    scores = query @ key.transpose(1, 2) * one.scale
    dense = scores.softmax(-1)
    out, expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value, dense @ value
    mass = dense.masked_fill(~seen, 0).sum(-1).mean(1)
    return mass, (out - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))


@pytest.mark.parametrize("budget", [TINY, 200_000, 2**28])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_all_rows_they_are_the_factors_of_the_full_matrices(dtype: torch.dtype, budget: int) -> None:
    one = layer(dtype, budget=budget)
    curve = radius_curve(one, RADII)
    assert curve.radii == RADII and curve.mass.shape == curve.error.shape == (len(RADII), HEADS)
    for index, radius in enumerate(RADII):
        full = measure(Circle(radius), one.query[None], one.key[None], one.value[None], LAYOUT, {})
        close(curve.mass[index], full.mass)
        close(curve.error[index], full.error)
    found, full = (
        circle_factors(one, 3),
        measure(Circle(3), one.query[None], one.key[None], one.value[None], LAYOUT, {}),
    )
    close(found.mass, full.mass)
    close(found.error, full.error)
    assert (found.formulation < 1e-6).all() and (full.formulation < 1e-6).all()
    assert torch.equal(found.integrity.key, full.integrity.key) and (found.integrity.value == 1).all()
    for mine, whole in ((found.rank, full.rank), (found.dense_rank, full.dense_rank)):
        # The square of a singular value of float32's Gram matrix is less exact than the singular value.
        torch.testing.assert_close(mine.entropy, whole.entropy, rtol=1e-6 if dtype == torch.float64 else 1e-4, atol=0)
        assert torch.equal(mine.energy, whole.energy)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)


def test_the_error_falls_with_the_radius_and_vanishes() -> None:
    curve = radius_curve(layer(), RADII)
    assert (curve.mass.diff(dim=0) > 0).all() and (curve.error.diff(dim=0) < 0).all()
    assert float(curve.error[-1].max()) < 1e-12


@pytest.mark.parametrize("budget", [TINY, 2**28])
@pytest.mark.parametrize("references", ["window", "all"])
def test_sampled_rows_and_reference_images(references: ReferenceView, budget: int) -> None:
    layout = TokenLayout(3, Grid(6, 9), (Grid(4, 5), Grid(12, 3)))
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, HEADS, layout.tokens, HEAD_DIM, generator=generator)
    rows = sampled_rows(layout.image, 20, seed=4)
    one = SampledLayer(query, key, value, layout, rows, 0.4, references, budget)
    radii = candidate_radii(layout.image)
    curve = radius_curve(one, radii)
    for index, radius in enumerate(radii):
        mass, error = naive(one, radius)
        close(curve.mass[index], mass)
        close(curve.error[index], error)
        visible = LocalPattern.whole(layout, Window(radius), references=references).mask()[layout.text + rows]
        assert torch.equal(one.distances(slice(None)) < radius**2, visible)
    found = circle_factors(one, 4)
    for value, expected in zip((found.mass, found.error), naive(one, 4), strict=True):
        close(value, expected)


def test_rows_are_drawn_without_replacement() -> None:
    grid = Grid(12, 20)
    rows = sampled_rows(grid, 50, seed=3)
    assert len(rows) == 50 and (rows.diff() > 0).all() and rows.min() >= 0 and rows.max() < grid.tokens
    assert torch.equal(rows, sampled_rows(grid, 50, seed=3))
    assert not torch.equal(rows, sampled_rows(grid, 50, seed=4))
    assert torch.equal(sampled_rows(grid, 1000, seed=3), ALL_ROWS)


@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(12, 20), Grid(1, 9), Grid(2, 2)], ids=str)
def test_a_radius_that_sees_everything_is_no_candidate(grid: Grid) -> None:
    radii, layout = candidate_radii(grid), TokenLayout(2, grid)
    assert radii == tuple(range(1, radii[-1] + 1))
    assert not LocalPattern.whole(layout, Window(radii[-1])).mask().all()
    assert LocalPattern.whole(layout, Window(radii[-1] + 1)).mask().all()


def test_candidates_end_with_the_largest_radius_of_the_nodes() -> None:
    assert candidate_radii(Grid(1, 1)) == ()
    assert candidate_radii(Grid(256, 256))[-1] == 128


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._uses: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else ():
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._uses[place] += 1
        if self._uses[place] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._uses[place] -= 1
        if not self._uses[place]:
            self.now -= size


def test_memory_stays_within_the_budget() -> None:
    """Of a layer whose matrices take 4 heads * 1124 * 1124 * 4 = 20 MB each."""
    layout = TokenLayout(100, Grid(32, 32))
    shape = (3, 4, layout.tokens, 16)
    query, key, value = torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    one = SampledLayer(query, key, value, layout, sampled_rows(layout.image, 64, 0), 0.25, budget=8 * 2**20)
    for work in (lambda one: radius_curve(one, (4, 20)), lambda one: circle_factors(one, 4)):
        with Live() as whole:
            work(one)
        assert whole.most < one.budget
        with Live() as small:
            work(replace(one, budget=TINY))
        head = 2 * layout.tokens * 16 * 4  # keys and values
        assert small.most < head + 8 * len(one.rows) * layout.tokens * 4


def test_the_check_is_asked_before_each_block_of_work() -> None:
    class Stopped(Exception):
        pass

    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 7:
            raise Stopped

    with pytest.raises(Stopped):
        radius_curve(layer(budget=TINY, check=check), RADII)
    assert asked == 7
    asked = 7
    circle_factors(layer(budget=TINY, check=check), 3)
    assert asked == 7 + HEADS


def curve(mass: list[float], error: list[float]) -> RadiusCurve:
    """Of radii 4, 8 and 16; head 1 has .1 more of both than head 0."""
    apart = torch.tensor([-0.05, 0.05])
    return RadiusCurve((4, 8, 16), torch.tensor(mass)[:, None] + apart, torch.tensor(error)[:, None] + apart)


def test_each_head_has_a_radius_of_its_own() -> None:
    early, late = curve([0.5, 0.8, 0.9], [0.3, 0.2, 0.1]), curve([0.7, 0.75, 0.95], [0.2, 0.15, 0.05])
    assert needed_radii([early], least_mass=0.74, most_error=0.26) == (8, 8)
    assert needed_radii([early], least_mass=0.84, most_error=0.26) == (16, 8), "head 1 has more mass"
    assert needed_radii([early], least_mass=0.4, most_error=0.16) == (8, 16), "and a larger error"
    assert needed_radii([early, late], least_mass=0.76, most_error=0.26) == (16, 8)
    assert needed_radii([early, late], least_mass=0.89, most_error=0.26) == (None, 16)


def test_the_smallest_radius_that_passes_both_bounds_everywhere() -> None:
    early, late = curve([0.5, 0.8, 0.9], [0.3, 0.2, 0.1]), curve([0.7, 0.75, 0.95], [0.2, 0.15, 0.05])
    assert recommended_radius([early], least_mass=0.79, most_error=0.25) == 8
    assert recommended_radius([early], least_mass=0.4, most_error=0.25) == 8, "the error decides"
    assert recommended_radius([early], least_mass=0.85, most_error=0.9) == 16, "the mass decides"
    assert recommended_radius([early], least_mass=0.4, most_error=0.4) == 4
    assert recommended_radius([early, late], least_mass=0.79, most_error=0.25) == 16, "the later one decides"
    assert recommended_radius([early, late], least_mass=0.99, most_error=0.25) is None
    with pytest.raises(ValueError, match="allowed is one curve or more, all alike"):
        recommended_radius([], least_mass=0.5, most_error=0.5)
    with pytest.raises(ValueError, match=r"curves have radii \[\(4, 8, 16\), \(4, 8\)\]"):
        recommended_radius([early, late._replace(radii=(4, 8))], least_mass=0.5, most_error=0.5)


def test_tensors_of_another_layout_are_refused() -> None:
    with pytest.raises(ValueError, match=r"key is \(2, 244, 16\); allowed is \[heads, 245, head_dim\] for 5 text"):
        replace(layer(), key=layer().key[:, 1:])
