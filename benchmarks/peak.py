"""Memory of GPUs that a piece of work takes at most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from .timing import wait


@contextmanager
def peaks(devices: Iterable[torch.device]) -> Iterator[dict[torch.device, float]]:
    """GiB of each GPU, beyond what was there before; known once the block has ended. A CPU is left out."""
    found: dict[torch.device, float] = {}
    before: dict[torch.device, int] = {}
    for device in devices:
        if device.type == "cuda":
            wait(device)
            torch.cuda.reset_peak_memory_stats(device)
            before[device] = torch.cuda.memory_allocated(device)
    yield found
    for device, already in before.items():
        wait(device)
        found[device] = (torch.cuda.max_memory_allocated(device) - already) / 2**30
