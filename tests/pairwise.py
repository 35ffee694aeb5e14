"""Few combinations of many options: every pair of two options' values occurs together at least once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

Pair = tuple[tuple[int, Any], tuple[int, Any]]


def all_pairs(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combinations of one value of each option, the same in every run.

    Each next one is the first of those that bring the most pairs of values that have not yet stood together. The
    values must be hashable.
    """
    missing = {pair for values in product(*options) for pair in _pairs(values)}
    chosen = []
    while missing:
        best = max(product(*options), key=lambda values: len(missing & _pairs(values)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(values: tuple[Any, ...]) -> set[Pair]:
    return set(combinations(enumerate(values), 2))
