"""What a forward takes of the cards does not grow with the number of bands, kernels apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from benchmarks.cards import ALL, Case, Row, measure

FEW, MANY = 4, 16
TOKENS = (128, 8)
"""So that the lowest bands are as high as the window's reach: a halo lies in one of them."""
COUNTED = (
    "between",
    "between_bytes",
    "up",
    "up_bytes",
    "weight_copies",
    "weight_casts",
    "waits",
    "threads",
    "workspaces",
)
CASES = {
    "one card": {"weights": "resident", "cards": 1},
    "two cards": {"weights": "resident", "cards": 2},
    "two cards, down-sampled": {"weights": "resident", "cards": 2, "down_factor": 4},
    "weights in 8 bits": {"weights": "fp8", "cards": 1},
    "weights in main memory": {"weights": "offloaded", "cards": 1},
}


@pytest.fixture(scope="module")
def whole(host: Any, pack: Any) -> Callable[[str, int], Row]:
    """What a forward of a case takes, by number of bands."""

    @cache
    def of(case: str, bands: int) -> Row:
        rows = measure(Case(bands=bands, tokens=TOKENS, backend="triton", warm=True, **CASES[case]))
        return next(row for row in rows if row.layer == ALL)

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", COUNTED)
def test_more_bands_take_no_more(whole: Callable[[str, int], Row], case: str, what: str) -> None:
    few, many = whole(case, FEW), whole(case, MANY)
    assert many.kernels > few.kernels
    assert getattr(many, what) <= getattr(few, what)


@pytest.mark.parametrize("case", CASES)
def test_nothing_comes_down_to_main_memory(whole: Callable[[str, int], Row], case: str) -> None:
    assert whole(case, MANY).down == 0
