"""Several machines of one card each, and what their network leaves of the speed-up: a model, nothing is measured.

`python dev.py bench --cluster` prints it as markdown; `--sizes 8192` takes other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from clear_core.cluster.choose import choose
from clear_core.cluster.machines import Link, Machine
from clear_core.cluster.measure import ATTENTION_SHARE
from clear_core.cluster.predict import Forward, predict
from clear_core.flux import PIXELS_PER_TOKEN
from clear_core.layout import Grid
from clear_core.window import Window

CARDS = {"RTX 4090": (165e12, ATTENTION_SHARE), "H200": (800e12, ATTENTION_SHARE)}
"""Operations a second of matrix products, and the share of it in attention: as in tests/core/test_simulate.py."""
NETWORKS = (1, 2.5, 10, 25, 100, 400)  # Gbit/s
REACHED = 0.9  # of a network's rate
LATENCY = 50e-6  # seconds; an assumption, a copy of a halo takes milliseconds
SIZES = (8192, 16384)
COUNTS = (2, 4, 8, 16)
RADIUS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """Some machines at one size. step_seconds, speed_up, overlap: by network. alone_seconds: one machine's.

    halo_mb, text_mb: that an inner machine, or the first of two, sends in one layer. chosen: how many machines are
    worth it, by network.
    """

    card: str
    pixels: int
    machines: int
    halo_mb: float
    text_mb: float
    alone_seconds: float
    step_seconds: tuple[float, ...]
    overlap: tuple[float, ...]
    chosen: tuple[int, ...]

    @property
    def speed_up(self) -> tuple[float, ...]:
        return tuple(self.alone_seconds / seconds for seconds in self.step_seconds)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "speed_up": self.speed_up}


def rows(sizes: Sequence[int] = SIZES) -> list[Row]:
    return [row(card, pixels, count) for card in CARDS for pixels in sizes for count in COUNTS]


def row(card: str, pixels: int, count: int) -> Row:
    side = pixels // PIXELS_PER_TOKEN
    forward = Forward(Grid(side, side), Window(RADIUS))
    machines = [Machine(f"{card} {number}", *CARDS[card]) for number in range(1, count + 1)]
    alone = predict(forward, machines[:1], {}).seconds
    found, chosen = [], []
    for gigabits in NETWORKS:
        link = Link(gigabits * 1e9 / 8 * REACHED, LATENCY)
        links = {(one.name, other.name): link for one in machines for other in machines if one is not other}
        found.append(predict(forward, machines, links))
        chosen.append(len(choose(forward, machines, links).machines))
    sent = found[0].sent[min(1, count - 1)]
    return Row(
        card,
        pixels,
        count,
        sent.halo / 1e6,
        sent.text / 1e6,
        alone,
        tuple(each.seconds for each in found),
        tuple(each.overlap for each in found),
        tuple(chosen),
    )


def table(found: Sequence[Row]) -> str:
    names = [f"{gigabits:g} Gbit/s" for gigabits in NETWORKS]
    head = ["card", "image", "machines", "one alone", "halo MB", "text MB", *names]
    cards = ", ".join(f"{name} {rate / 1e12:g} TFLOP/s" for name, (rate, _) in CARDS.items())
    lines = [
        "Speed-up over one machine. A MODEL, not a measurement: the order of work of bands replayed, bfloat16, radius",
        f"{RADIUS}, one card a machine ({cards}; half of it in attention), {REACHED:.0%} of each network's rate,",
        f"{LATENCY * 1e6:g} microseconds of latency. In brackets: how many make the shortest step, where not all do.",
        "Sent by an inner machine (one of two: at the only border) in one layer: halo MB, text MB.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for each in found:
        cells = [
            f"{speed_up:.1f}" + ("" if chosen == each.machines else f" ({chosen})")
            for speed_up, chosen in zip(each.speed_up, each.chosen, strict=True)
        ]
        size, sent = f"{each.pixels} px", [f"{each.halo_mb:.0f}", f"{each.text_mb:.1f}"]
        parts = [each.card, size, str(each.machines), f"{each.alone_seconds:.1f} s", *sent, *cells]
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines)
