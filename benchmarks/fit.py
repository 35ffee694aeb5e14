"""What ComfyUI loads, evicts and offloads on cards of several sizes: its own model management on simulated cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from devtools.cards import GIB
from devtools.cards_memory import CardAfter, prepared
from devtools.inprocess import import_host, node_class, pack_module, run_node

SIZES = (8, 12, 16, 24, 32, 48, 80)
"""GiB of a card."""
COUNTS = (1, 2)
DTYPES = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16}
RADIUS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One card of each run, the one with least to spare. GiB, but for the number of bands of the image."""

    card: int
    cards: int
    weights: str
    pixels: int
    loaded: float
    offloaded: float
    bands: int
    needed: float
    spare: float
    still_loaded: str

    @classmethod
    def of(cls, size: int, weights: str, pixels: int, after: list[CardAfter]) -> Row:
        least = min(after, key=lambda card: card.spare)
        kept = sorted({name for card in after for name in card.kept})
        return cls(
            size,
            len(after),
            weights,
            pixels,
            least.loaded / GIB,
            least.offloaded / GIB,
            least.bands,
            least.need / GIB,
            least.spare / GIB,
            ", ".join(kept) or "none",
        )


def rows(pixels: int) -> Iterator[Row]:
    """Every size, number of cards and weights, for an image of `pixels` a side."""
    import_host()
    apply, multi = node_class("apply", "CLEARApply"), node_class("multi_gpu", "CLEARMultiGPU")

    def in_bands(model: Any) -> Any:
        clear = run_node(apply, model=model, weights=None, radius=RADIUS)[0]
        return run_node(multi, model=clear, devices="auto", bands=0)[0]

    for weights, dtype in DTYPES.items():
        for size in SIZES:
            for count in COUNTS:
                yield Row.of(size, weights, pixels, prepared(count, size * GIB, dtype, pixels, in_bands, pack_module))


def table(found: list[Row]) -> str:
    lines = [
        "| card | weights | cards | loaded | offloaded | bands | needed beside | to spare | other models on it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.card} GB | {row.weights} | {row.cards} | {row.loaded:.1f} | {row.offloaded:.1f} | {row.bands} | "
        f"{row.needed:.1f} | {row.spare:.1f} | {row.still_loaded} |"
        for row in found
    ]
    return "\n".join(lines)
