"""Lanes in other processes: what one process needs of them in a forward.

Every process runs the same plan; each has some of its lanes. What a lane sends to a lane of another process is posted
here, and what comes from there is delivered to the exchange: the order of work is the same as with all lanes in one
process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .schedule import Copy

Deliver = Callable[[int, Copy, tuple[Tensor, ...]], None]
"""(layer, copy, tensors): what a lane of another process has sent to one of this process. From any thread; the copies
of one lane to another come in the order in which they were posted."""
Fail = Callable[["PeerError"], None]
"""Another process cannot go on, or cannot be reached: all lanes of this process stop."""


class PeerError(RuntimeError):
    """Another process failed, or cannot be reached; the text says which and why."""


class Links(Protocol):
    """The way to the lanes of other processes, in one forward."""

    @property
    def lanes(self) -> range:
        """Of the plan, those of this process: one at least."""
        ...

    def open(self, deliver: Deliver, fail: Fail) -> None:
        """Deliver what comes, also what came before this call."""
        ...

    def post(self, layer: int, copy: Copy, tensors: tuple[Tensor, ...]) -> None:
        """Send to a lane of another process. Does not wait; the tensors stay as they are until they are sent."""
        ...

    def failed(self, problem: BaseException) -> None:
        """A lane of this process failed: the other processes stop too."""
        ...

    def close(self) -> None:
        """The forward is over for this process: nothing is delivered any more."""
        ...
