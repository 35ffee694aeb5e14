"""The parts of `python dev.py card`, in their order: correctness before speed, what must be known before the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Part:
    """name: also of the module here whose `rows(scale)` yields what it finds. what: the question, for the page.

    seconds: its limit. columns: what those are that their names do not say, for the page. interpret: in a rehearsal it
    runs the fused kernel too, in Triton's interpreter.
    """

    name: str
    what: str
    seconds: int
    columns: str = ""
    interpret: bool = False


HOPPER = "hopper"
"""The part whose outcome decides which kernel the later ones run."""

PARTS = (
    Part(
        HOPPER,
        "The kernel for Hopper chips: its self-test, in a process of its own",
        100,
        "Where it is not right, later parts run the usual kernel; where it is, they do not test it in a process again.",
    ),
    Part(
        "correctness",
        "Every backend against float64, on sampled queries",
        120,
        "Error: of the output, relative in the 2-norm. Allowed: twice that of PyTorch's dense kernel. Lse off by: the "
        "largest difference of a log-sum-exp.",
        interpret=True,
    ),
    Part(
        "tuning",
        "Configurations of the fused kernel",
        150,
        "TFLOP/s: of the pairs that it computes, those under the mask included. Current: the one in the source.",
        interpret=True,
    ),
    Part(
        "speed",
        "Attention of one layer: dense kernels, this pack's backends, the authors' way",
        150,
        "Against dense: how many times as fast as the best dense kernel. Of the matrix rate: what the pairs in the "
        "windows need, over what the card computes of matrix products (the first row) in that time. Us to launch: what "
        "a call keeps the host busy.",
    ),
    Part(
        "tiles",
        "Tiles of the backend that needs no Triton, and the cost of a pair",
        60,
        "Per pair: the time of a (query, key) pair that it computes; in the best dense kernel it is 1. Current: in the "
        "source.",
    ),
    Part(
        "banding",
        "One layer in bands: time, waits, look-ups",
        45,
        "Waits: of the host for the card. Plans looked up: in the first layer of a step; other layers look none up. "
        "Hit rate: the share of them that was there; empty where none was looked up.",
    ),
    Part(
        "steps",
        "Whole steps of a model of FLUX.1's size, and their peak memory",
        180,
        "Radius 0: dense. Blocks: FLUX.1 has 57. Against dense: how many times as fast, with as many blocks. Peak: "
        "beside the weights; predicted: what the nodes count on.",
    ),
    Part(
        "devices",
        "Several cards: copies between them, a layer and a step in bands over all of them",
        60,
        "Difference: from the result of as many lanes on one card, which do the same arithmetic. Peak: beside the "
        "weights.",
    ),
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
