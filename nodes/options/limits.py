"""Checks of single values, in one wording: the name, what was given, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low <= value <= high. The host lets NaN, which a workflow may hold, through its own."""
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value}; allowed is {low:g} to {high:g}")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError unless it is a choice. The host checks no io.Combo: it knows lists of choices alone."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r:.60}; choose one of: {', '.join(choices)}")
