"""Several processes that share the samples of a step, over torch.distributed, as torchrun starts them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from .optimizers import ADAMW_OPTIONS, make_optimizer
from .settings import ADAMW


class Processes(Protocol):
    """rank: of this process, from 0. world: how many there are."""

    rank: int
    world: int

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        ...

    def optimizer(self, name: str, weights: list[Tensor], learning_rate: float) -> Any:
        """Of `settings.OPTIMIZERS`."""
        ...

    def whole_state(self, optimizer: Any) -> dict[str, Any] | None:
        """The optimizer's state, in the process that writes it; None in the others. All have to call it."""
        ...


class Alone:
    """One process."""

    rank, world = 0, 1

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        pass

    def optimizer(self, name: str, weights: list[Tensor], learning_rate: float) -> Any:
        return make_optimizer(name, weights, learning_rate)

    def whole_state(self, optimizer: Any) -> dict[str, Any] | None:
        state: dict[str, Any] = optimizer.state_dict()
        return state


class Group:
    """The processes of torch.distributed's default group.

    Each keeps AdamW's state for a part of the weights. Prodigy estimates one rate from all weights, and 8-bit states
    are small: of these, each process has the whole state, which stays the same in all since the gradients are.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        # All are under way before the first is waited for.
        under_way: list[Any] = [self._dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in under_way:
            work.wait()

    def optimizer(self, name: str, weights: list[Tensor], learning_rate: float) -> Any:
        if name != ADAMW:
            return make_optimizer(name, weights, learning_rate)
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(weights, torch.optim.AdamW, lr=learning_rate, **ADAMW_OPTIONS)

    def whole_state(self, optimizer: Any) -> dict[str, Any] | None:
        if hasattr(optimizer, "consolidate_state_dict"):
            optimizer.consolidate_state_dict(to=0)
        return None if self.rank else optimizer.state_dict()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started this one with; `Alone` without torchrun. CUDA devices are dealt by rank."""
    if not _several():
        yield Alone()
        return
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield Group()
    finally:
        dist.destroy_process_group()


def end_process() -> None:
    """The last statement of a command that has `joined` others and succeeded: ends the process. Alone, it returns.

    The process group outlives `joined` where an optimizer or a sharded module refers to it, with gloo's threads. One
    that frees a collective's tensors needs the GIL; while it waits for that, finalizing the interpreter aborts the
    process ("terminate called without an active exception"), and torchrun reports a failure.
    """
    if not _several():
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
