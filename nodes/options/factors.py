"""Validated settings of CLEAR Factors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ...clear_core.weights import LARGEST_RADIUS
from .blocks import ALL, BlockChoice, parse_blocks
from .limits import within

FEWEST_QUERIES, MOST_QUERIES = 16, 1024
_MOST_TIMES = 8
_LONGEST = 200  # characters


@dataclass(frozen=True, slots=True)
class FactorsRequest:
    """What is measured, and what passes.

    percents: points of the schedule, 0 to 1, ascending. queries: image tokens whose attention is measured.
    least_mass, most_error: bounds on means over heads, 0 to 1. radius: that the table judges; 0 for the recommended.
    """

    percents: tuple[float, ...]
    blocks: BlockChoice
    queries: int
    least_mass: float
    most_error: float
    radius: int = 0


@dataclass(frozen=True, slots=True)
class FactorsInputs:
    """The values of the widgets of CLEAR Factors; the defaults are those of a new node."""

    percents: str = "0.1, 0.5, 0.9"
    least_mass: float = 0.9
    largest_error: float = 0.1
    radius: int = 0
    blocks: str = ALL
    queries: int = 256

    def request(self) -> FactorsRequest:
        """What they ask for. Raises ValueError naming the value and what is allowed."""
        within("least_mass", self.least_mass, 0.0, 1.0)
        within("largest_error", self.largest_error, 0.0, 1.0)
        within("radius", self.radius, 0, LARGEST_RADIUS)
        within("queries", self.queries, FEWEST_QUERIES, MOST_QUERIES)
        percents, blocks = _parse_percents(self.percents), parse_blocks(self.blocks)
        return FactorsRequest(percents, blocks, self.queries, self.least_mass, self.largest_error, self.radius)


def _parse_percents(text: str) -> tuple[float, ...]:
    """Points of the schedule, such as "0.1, 0.5, 0.9": ascending, each once."""
    items = re.split(r"[\s,;]+", text.strip()) if len(text) <= _LONGEST else []
    try:
        percents = sorted({float(item) for item in items})
    except ValueError:
        percents = []
    if not 1 <= len(percents) <= _MOST_TIMES or not all(math.isfinite(p) and 0 <= p <= 1 for p in percents):
        raise ValueError(
            f"percents is {text!r:.60}; write 1 to {_MOST_TIMES} numbers from 0 to 1, separated by commas, such as "
            "0.1, 0.5, 0.9"
        )
    return tuple(percents)
