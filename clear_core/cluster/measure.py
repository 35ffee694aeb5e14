"""One small measurement of a device and of a link, where a worker joins: what `predict` starts from."""

from __future__ import annotations

import statistics
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
    """The link to another rank, which calls `answer_link` at the same time: the mean of both directions.

    Raises PeerError where it is lost.
    """
    latency = statistics.median(_there_and_back(links, rank, index, _SMALL) for index in range(_REPEATS)) / 2
    carrying = _there_and_back(links, rank, _REPEATS, _BYTES) / 2 - latency
    return Link(_BYTES / max(carrying, 1e-9), latency)


def answer_link(links: ForwardLinks, rank: int) -> None:
    """Give each message back."""
    for index in range(_REPEATS + 1):
        links.send(rank, "output", index, links.receive(rank, "given", index))


def _there_and_back(links: ForwardLinks, rank: int, index: int, size: int) -> float:
    """Seconds of so many bytes to a rank and back."""
    begun = time.perf_counter()
    links.send(rank, "given", index, (torch.zeros(size, dtype=torch.uint8),))
    links.receive(rank, "output", index)
    return time.perf_counter() - begun
