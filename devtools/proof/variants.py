"""The students that are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from clear_core.distill.settings import BOTH, END_TO_END, LAYER_BY_LAYER, LORA, WEIGHTS

from ..small_flux.files import RADIUS

UNTRAINED = "untrained"


@dataclass(frozen=True, slots=True)
class Variant:
    """One student. method: of CLEAR's distillation, or UNTRAINED. rank: of a LoRA; 0 for weights in full."""

    radius: int
    method: str = BOTH
    rank: int = 0
    down_factor: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its row, and of its files."""
        what = f"lora_{self.rank}" if self.rank else "full"
        if self.method == UNTRAINED:
            what = UNTRAINED
        down = f"_down_{self.down_factor}" if self.down_factor > 1 else ""
        method = "" if self.method == UNTRAINED else "_" + self.method.replace(" ", "_")
        return f"r{self.radius}{down}_{what}{method}_seed_{self.seed}"

    @property
    def trained(self) -> bool:
        return self.method != UNTRAINED

    def settings(self, steps: int, batch: int) -> dict[str, Any]:
        """Of `clear_core.distill.settings.Settings`."""
        return {
            "radius": self.radius,
            "down_factor": self.down_factor,
            "method": self.method,
            "output": LORA if self.rank else WEIGHTS,
            "rank": max(1, self.rank),
            "steps": steps,
            "batch": batch,
            # A LoRA's two factors start small: it takes larger steps.
            "learning_rate": 2e-3 if self.rank else 5e-4,
            "seed": self.seed,
        }


MAIN = Variant(RADIUS)
"""The student that the demo uses."""


def grid(seeds: int) -> Iterator[Variant]:
    """All that the report compares. The untrained window has one seed: nothing in it is drawn at random."""
    middle = MAIN.radius
    for radius in (2, middle, 4):
        yield Variant(radius, UNTRAINED)
    yield Variant(middle, UNTRAINED, down_factor=4)
    for seed in range(seeds):
        full = Variant(middle, seed=seed)
        yield full
        for method in (LAYER_BY_LAYER, END_TO_END):
            yield replace(full, method=method)
        for rank in (4, 16, 64):
            yield replace(full, rank=rank)
        for radius in (2, 4):
            yield replace(full, radius=radius)
        yield replace(full, down_factor=4)
