"""Each strategy at the size of the small FLUX: about 36 image keys for each of the 16 x 16 image tokens.

36 because cells of 3 x 3, tiles of 2 x 2 and squares of 6 x 6 meet there: of 16 x 16 tokens few other numbers can be
had from most strategies. Where several sizes are possible, the one closest to 36 keys on average, over all queries and
both kinds of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..inprocess import pack_module

KEYS = 36
SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "circle": {"radius": 4},
        "clipped_neighbourhood": {"side": 7},
        "shifted_neighbourhood": {"side": 6},
        "swin": {"side": 7},
        "strided": {"stride": 3},
        "bigbird": {"side": 1, "drawn": 23},
        "tiles": {"tile": 2, "across": 3},
        "convolution": {"side": 3},
        "mean": {"side": 3},
        "linformer": {"length": 36},
        "linear": {},
        "generalised_linear": {},
        "gated": {},
        "sigmoid": {},
        "agent": {"side": 3},
        "sla": {"side": 2, "blocks": 9},
    }
)
"""By name, the fields that differ from the strategy's usual ones, which are for 64 x 64 tokens."""

UNMATCHED = frozenset({"linear", "generalised_linear", "gated", "sigmoid"})
"""Their formula has no number of keys that could be chosen."""


def strategy(name: str) -> Any:
    """The pack's strategy of this name at this size. After `import_host`."""
    return replace(pack_module("clear_core.strategies").strategy_named(name), **SIZES[name])


def described(name: str) -> str:
    """Its numbers, in words."""
    return ", ".join(f"{field} {value}" for field, value in SIZES[name].items())


def image_keys(name: str, strategy: Any, layout: Any) -> float | None:
    """Image keys, or merged slots, that an image query reads: the mean over queries and layers. None where the formula
    has no such number."""
    if name in UNMATCHED:
        return None
    if hasattr(strategy, "slots"):
        return float(strategy.slots(layout))
    if name == "sla":  # its linear part is counted in `flops` too
        return float(strategy.blocks * strategy.side**2)
    dense = layout.image.tokens + layout.text
    pairs = [strategy.flops(layout, 1, 1, layer) / 4 - layout.text * dense for layer in (0, 1)]
    return sum(pairs) / len(pairs) / layout.image.tokens - layout.text
