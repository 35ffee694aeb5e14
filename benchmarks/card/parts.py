"""The parts of `python dev.py card`, in their order: correctness before speed, what must be known before the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Part:
    """name: also of the module here whose `rows(scale)` yields what it finds. what: the question, for the page.

    seconds: its limit. interpret: in a rehearsal it runs the fused kernel too, in Triton's interpreter.
    """

    name: str
    what: str
    seconds: int
    interpret: bool = False


PARTS = (
    Part("correctness", "Every backend against float64, on sampled queries", 120, interpret=True),
    Part("tuning", "Configurations of the fused kernel", 150, interpret=True),
    Part("speed", "Attention of one layer: dense kernels, this pack's backends, the authors' way", 150),
    Part("tiles", "Tiles of the backend that needs no Triton, and the cost of a pair", 60),
    Part("banding", "One layer in bands: time, waits, look-ups", 45),
    Part("steps", "Whole steps of the 12-billion shape, and their peak memory", 180),
    Part("devices", "Several cards: copies between them, a layer and a step in bands over all of them", 60),
    Part("sanitizer", "compute-sanitizer over a small call", 60),
)

FAULTS = (
    Part("hanging", "Rehearsal: a part that hangs", 5),
    Part("crashing", "Rehearsal: a part that crashes", 20),
    Part("exhausting", "Rehearsal: a part that runs out of memory", 20),
)
"""With `--rehearse`, between the others: each must cost itself alone."""


def parts(*, rehearsal: bool) -> tuple[Part, ...]:
    if not rehearsal:
        return PARTS
    # The limits are a card's; a processor that others use too takes many times longer to start alone.
    slow = [replace(part, seconds=4 * part.seconds) for part in PARTS]
    return (*slow[:1], *FAULTS, *slow[1:])
