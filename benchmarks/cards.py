"""What a forward in bands takes of the cards, layer by layer: counted on simulated cards, nothing is timed.

The host's own sampling and the nodes run on fake tensors (`devtools.cards`), with the fused kernel counted as one. The
image is tall and narrow, and the model has one block of each kind, all of which are alike: what is counted depends on
the number of bands and of cards only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from devtools.cards import GIB, cards
from devtools.cards_counts import LOADING, counted
from devtools.cards_model import model_on, sample_on
from devtools.inprocess import import_host, node_class, run_node

RADIUS = 8
TOKENS = (256, 16)
"""Rows and columns: two rows for each of 128 bands."""
BANDS = (0, 8, 64, 128)
"""0 is without CLEAR Multi-GPU."""
ALL = "all layers"


@dataclass(frozen=True, slots=True)
class Case:
    """weights: "resident", on the cards in bfloat16; "fp8", on the cards in 8 bits; "offloaded", in main memory.

    tokens: rows and columns of the image. warm: count the second run, when plans are known.
    """

    weights: str
    cards: int
    bands: int
    down_factor: int = 1
    backend: str = "auto"
    warm: bool = False
    tokens: tuple[int, int] = TOKENS


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of one forward; `ALL` is the whole forward, and the only one with threads and workspaces.

    between: copies between cards. up, down: from and to main memory. weight_copies, weight_casts: of the weights.
    waits: of the host for a card.
    """

    weights: str
    cards: int
    bands: int
    layer: str
    kernels: int
    between: int
    between_bytes: int
    up: int
    up_bytes: int
    down: int
    weight_copies: int
    weight_casts: int
    waits: int
    threads: int | None = None
    workspaces: int | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def cases(bands: tuple[int, ...] = BANDS) -> list[Case]:
    """Resident weights on one, two and four cards; the others on one."""
    kinds = [("resident", 1), ("fp8", 1), ("offloaded", 1), ("resident", 2), ("resident", 4)]
    return [Case(weights, count, number) for weights, count in kinds for number in bands if number or count == 1]


def measure(case: Case) -> Iterator[Row]:
    """Every layer of one forward, then all of it."""
    import_host()
    apply, cut = node_class("apply", "CLEARApply"), node_class("multi_gpu", "CLEARMultiGPU")
    memory = GIB if case.weights == "offloaded" else 80 * GIB  # a GiB is what the host keeps for activations
    with cards(case.cards, memory=memory) as found:
        model = model_on(found.devices[0], fp8=case.weights == "fp8", depth=1, depth_single_blocks=1)
        settings = {"radius": RADIUS, "down_factor": case.down_factor, "backend": case.backend}
        model = run_node(apply, model=model, weights=None, **settings)[0]
        if case.bands:
            devices = ",".join(map(str, found.devices))
            model = run_node(cut, model=model, devices=devices, bands=case.bands)[0]
        height, width = (2 * side for side in case.tokens)
        if case.warm:
            sample_on(model, height, width)
        with counted(found) as ledger:
            sample_on(model, height, width)
    for name, counts in [*sorted(ledger.layers.items()), (ALL, ledger.in_forward())]:
        if name == LOADING:
            continue
        copies, sizes = counts.copies, counts.copied_bytes
        whole = name == ALL
        yield Row(
            case.weights,
            case.cards,
            case.bands,
            name,
            counts.kernels,
            sum(number for pair, number in copies.items() if "cpu" not in pair),
            sum(size for pair, size in sizes.items() if "cpu" not in pair),
            sum(number for (source, _), number in copies.items() if source == "cpu"),
            sum(size for (source, _), size in sizes.items() if source == "cpu"),
            sum(number for (_, target), number in copies.items() if target == "cpu"),
            counts.weight_copies,
            counts.weight_casts,
            counts.waits,
            ledger.threads if whole else None,
            len(ledger.workspaces) if whole else None,
        )


def table(rows: list[Row]) -> str:
    lines = [
        f"{'weights':<10} {'cards':>5} {'bands':>5} {'layer':<18} {'kernels':>8} {'between':>8} {'kB':>8} {'up':>6} "
        f"{'kB':>8} {'down':>5} {'weights moved':>13} {'cast':>6} {'waits':>6} {'threads':>8} {'workspaces':>10}"
    ]
    for row in rows:
        ends = "".join("" if value is None else f" {value:>8}" for value in (row.threads, row.workspaces))
        lines.append(
            f"{row.weights:<10} {row.cards:>5} {row.bands:>5} {row.layer:<18} {row.kernels:>8} {row.between:>8} "
            f"{row.between_bytes / 1e3:>8.1f} {row.up:>6} {row.up_bytes / 1e3:>8.1f} {row.down:>5} "
            f"{row.weight_copies:>13} {row.weight_casts:>6} {row.waits:>6}{ends}"
        )
    return "\n".join(lines)
