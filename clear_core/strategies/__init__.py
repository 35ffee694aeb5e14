"""Other ways to make attention cheaper than the circle, behind one interface, to be compared with it.

They are the alternatives that CLEAR (arXiv 2412.16112) is measured against, at about 256 image keys for each query of a
64 x 64 grid, where the formula lets one choose. docs/strategies.md is the table.
"""

from __future__ import annotations

from typing import Final

from .agent import Agent
from .base import Maps, Parameters, Strategy
from .bigbird import BigBird
from .circle import Circle
from .gated import Gated
from .linear import GeneralisedLinear, Linear
from .linformer import Linformer
from .neighbourhood import ClippedNeighbourhood, ShiftedNeighbourhood
from .pixart import ConvolutionCompression, MeanCompression
from .sigmoid import Sigmoid
from .sla import SparseLinear
from .strided import Strided
from .swin import Swin
from .tiles import SlidingTiles

STRATEGIES: Final[tuple[Strategy, ...]] = (
    Circle(),
    ClippedNeighbourhood(),
    ShiftedNeighbourhood(),
    Swin(),
    Strided(),
    BigBird(),
    SlidingTiles(),
    ConvolutionCompression(),
    MeanCompression(),
    Linformer(),
    Linear(),
    GeneralisedLinear(),
    Gated(),
    Sigmoid(),
    Agent(),
    SparseLinear(),
)
"""Masks, then merged keys and values, then other formulas. A new strategy is a new file and an entry here."""


def strategy_names() -> tuple[str, ...]:
    """The names of all strategies, in their order."""
    return tuple(strategy.name for strategy in STRATEGIES)


def strategy_named(name: str) -> Strategy:
    """The strategy of a name, with its usual numbers. Raises ValueError for an unknown one."""
    for strategy in STRATEGIES:
        if strategy.name == name:
            return strategy
    raise ValueError(f"strategy is {name!r}; allowed is one of: {', '.join(strategy_names())}")


__all__ = [
    "STRATEGIES",
    "Agent",
    "BigBird",
    "Circle",
    "ClippedNeighbourhood",
    "ConvolutionCompression",
    "Gated",
    "GeneralisedLinear",
    "Linear",
    "Linformer",
    "Maps",
    "MeanCompression",
    "Parameters",
    "ShiftedNeighbourhood",
    "Sigmoid",
    "SlidingTiles",
    "SparseLinear",
    "Strategy",
    "Strided",
    "Swin",
    "strategy_named",
    "strategy_names",
]
