"""The students that are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from clear_core.distill.settings import ATTENTION, BLOCKS, BOTH, END_TO_END, LAYER_BY_LAYER, LORA, WEIGHTS

from ..small_flux.files import RADIUS

UNTRAINED = "untrained"
USUAL, LONG, TEACHER, LONGER = "", "long", "teacher", "longer"
TIMES = {LONG: 4, TEACHER: 10, LONGER: 50}
"""How many times the samples of the usual training one has. TEACHER and LONGER have no flow term and no attention term:
the student follows the dense model's velocity alone."""
VELOCITY = (TEACHER, LONGER)
_TOGETHER = 16  # samples that are computed at once
STARTS = (0.1, 0.3, 0.5)
"""Shares of the schedule with full attention that are compared: the first 2, 6 and 10 of 20 steps."""
DENSE = (0.3, 0.5)
"""Shares of the schedule that the dense model samples, with its own weights, before the student does."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One student. method: of CLEAR's distillation, or UNTRAINED. rank: of a LoRA; 0 for weights in full. layers: of
    `clear_core.distill.settings.LAYERS`.

    training: USUAL, or one of TIMES on more samples, at a rate that falls in the second half. start_percent: of
    Apply CLEAR Attention, the share of the schedule that is sampled with full attention, by the student's weights.
    dense: the share that the dense model samples before.
    """

    radius: int
    method: str = BOTH
    rank: int = 0
    down_factor: int = 1
    seed: int = 0
    training: str = USUAL
    start_percent: float = 0.0
    dense: float = 0.0
    layers: str = ATTENTION

    @property
    def name(self) -> str:
        """Of its row, and of its files."""
        what = f"lora_{self.rank}" if self.rank else "full"
        if self.layers == BLOCKS:
            what += "_blocks"
        if self.method == UNTRAINED:
            what = UNTRAINED
        down = f"_down_{self.down_factor}" if self.down_factor > 1 else ""
        method = "" if self.method == UNTRAINED else "_" + self.method.replace(" ", "_")
        long = f"_{self.training}" if self.training else ""
        start = f"_from_{100 * self.start_percent:.0f}" if self.start_percent else ""
        dense = f"_after_{100 * self.dense:.0f}_dense" if self.dense else ""
        return f"r{self.radius}{down}_{what}{method}{long}{start}{dense}_seed_{self.seed}"

    @property
    def trained(self) -> bool:
        return self.method != UNTRAINED

    @property
    def untrained(self) -> Variant:
        """What it starts from: the same window on the model's own weights."""
        return Variant(self.radius, UNTRAINED, down_factor=self.down_factor)

    @property
    def student(self) -> Variant:
        """The one whose training this one uses: itself, where nothing differs but the sampling."""
        return replace(self, start_percent=0.0, dense=0.0)

    def settings(self, steps: int, batch: int) -> dict[str, Any]:
        """Of `clear_core.distill.settings.Settings`. steps, batch: of a training that is not long."""
        found = {
            "radius": self.radius,
            "down_factor": self.down_factor,
            "method": self.method,
            "output": LORA if self.rank else WEIGHTS,
            "rank": max(1, self.rank),
            "layers": self.layers,
            "steps": steps,
            "batch": batch,
            # A LoRA's two factors start small: it takes larger steps.
            "learning_rate": 2e-3 if self.rank else 5e-4,
            "seed": self.seed,
        }
        if self.training:
            times = 4 if self.training in VELOCITY else 2
            found |= {
                "steps": steps * TIMES[self.training] // times,
                "batch": batch * times,
                "learning_rate": 2e-3 if self.rank else 1e-3,
                "cooldown": 0.5,
                "timestep_shift": 4.0 if self.training == LONGER else 2.0,
            }
        if self.training in VELOCITY:
            found |= {"flow_weight": 0.0, "output_weight": 1.0, "attention_weight": 0.0}
        return {**found, "micro_batch": min(_TOGETHER, found["batch"])}


MAIN = Variant(RADIUS)
"""The student that the demo uses."""
LONGEST = replace(MAIN, method=END_TO_END, training=TEACHER)
"""The same window, trained longest."""
POOLED = Variant(1, END_TO_END, down_factor=2, training=TEACHER)
"""The smallest window, with tokens of two by two: all of the image is seen, most of it at half the resolution."""
ALL_LAYERS = replace(POOLED, rank=128, layers=BLOCKS, training=LONGER)
"""A LoRA that leaves the small model's matrices free, beside all layers, trained longest."""


def grid(seeds: int) -> Iterator[Variant]:
    """All that the report compares. What is not trained has one seed: nothing in it is drawn at random."""
    middle = MAIN.radius
    for radius in (2, middle, 4):
        yield Variant(radius, UNTRAINED)
    yield Variant(middle, UNTRAINED, down_factor=4)
    yield POOLED.untrained
    for start in STARTS:
        yield Variant(middle, UNTRAINED, start_percent=start)
    for seed in range(seeds):
        full = replace(MAIN, seed=seed)
        yield full
        for long in (replace(full, training=LONG), replace(LONGEST, seed=seed)):
            yield long
            for start in STARTS:
                yield replace(long, start_percent=start)
            for share in DENSE:
                yield replace(long, dense=share)
        for method in (LAYER_BY_LAYER, END_TO_END):
            yield replace(full, method=method)
        for rank in (4, 16, 64):
            yield replace(full, rank=rank)
        for radius in (2, 4):
            yield replace(full, radius=radius)
        yield replace(POOLED, seed=seed)
        yield replace(ALL_LAYERS, seed=seed)
        global_context = replace(full, down_factor=4)
        yield global_context
        longest = replace(global_context, method=END_TO_END, training=TEACHER)
        yield longest
        for share in DENSE:
            yield replace(longest, dense=share)
