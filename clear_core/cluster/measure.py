"""One small measurement of a device and of a link, where a worker joins: what `predict` starts from."""

from __future__ import annotations

import time
from typing import Final

import torch

from .machines import Link
from .transport import ForwardLinks

ATTENTION_SHARE: Final = 0.5
"""Of a card's rate in matrix products that windowed attention is taken to reach."""
_SIDE, _SIDE_CPU = 4096, 768
_REPEATS: Final = 3
_BYTES: Final = 4 * 2**20
_SMALL: Final = 64


def matrix_rate(device: torch.device) -> float:
    """Operations a second of matrix products: in bfloat16, on the CPU in float32. The best of a few."""
    side, kind = (_SIDE_CPU, torch.float32) if device.type == "cpu" else (_SIDE, torch.bfloat16)
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    took: list[float] = []
    for _ in range(_REPEATS + 1):  # the first one loads the library
        begun = time.perf_counter()
        product = one @ other
        float(product[0, 0])  # waits for the device
        took.append(time.perf_counter() - begun)
    return 2 * side**3 / min(took[1:])


def time_link(links: ForwardLinks, rank: int) -> Link:
    """The link to another rank, which calls `answer_link` at the same time: its rate while both directions are busy, as
    they are in a forward.

    Raises PeerError where it is lost.
    """
    small, large = (torch.zeros(size, dtype=torch.uint8) for size in (_SMALL, _BYTES))
    took: list[float] = []
    for index in range(_REPEATS):
        begun = time.perf_counter()
        links.send(rank, "given", index, (small,))
        links.receive(rank, "output", index)
        took.append(time.perf_counter() - begun)
    there_and_back = min(took)
    begun = time.perf_counter()
    links.send(rank, "given", _REPEATS, (small,))  # has the other rank begin
    links.send(rank, "given", _REPEATS + 1, (large,))
    links.receive(rank, "output", _REPEATS + 1)
    whole = time.perf_counter() - begun
    # On a busy machine small messages can wait longer than the large one: the rate is at most twice what has arrived.
    return Link(_BYTES / max(whole - there_and_back, whole / 2), there_and_back / 2)


def answer_link(links: ForwardLinks, rank: int) -> None:
    """The other side of `time_link`. Raises PeerError where the rank is lost."""
    for index in range(_REPEATS):
        links.send(rank, "output", index, links.receive(rank, "given", index))
    links.receive(rank, "given", _REPEATS)
    links.send(rank, "output", _REPEATS + 1, (torch.zeros(_BYTES, dtype=torch.uint8),))
    links.receive(rank, "given", _REPEATS + 1)
