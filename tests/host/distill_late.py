"""A process of two whose last collective still has a tensor to free when it ends: gloo's thread waits for the GIL."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

from clear_core.distill.processes import end_process, joined

with joined() as processes:
    kept = dist.group.WORLD  # as an optimizer has it
    sys.setswitchinterval(1000)  # seconds: the thread gets the GIL only where the main thread waits
    if processes.rank == 1:
        time.sleep(0.5)
    dist.all_reduce(torch.ones(1000), async_op=True)
    if processes.rank == 0:
        time.sleep(0.1)  # the thread has begun
print("done", processes.rank, flush=True)
ends = time.monotonic() + 1.5
while time.monotonic() < ends:
    pass  # the thread is through with the collective, and waits
end_process()
