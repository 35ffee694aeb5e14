"""Other machines that take part in forwards, as bands see them; `cluster.session` has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import Links
from ....clear_core.bands.workers import TextMerge
from ....clear_core.cluster.predict import Forward
from ....clear_core.window import Window
from ..attention_call import Frame
from ..forward_args import ForwardArgs
from .memory import shape_of
from .progress import BlockDone, ForwardProgress
from .replicas import Lane


@dataclass(frozen=True, slots=True)
class OtherLane:
    """A card of another machine. share: of the rows, in the unit of this machine's lanes. memory: bytes that a forward
    may take there; None where nothing is to be saved."""

    share: float
    memory: int | None


@dataclass(frozen=True, slots=True, eq=False)
class SharedForward:
    """One forward that other machines may take part in.

    lanes: of this machine. work: what is computed, where its time can be predicted: with a window. plan_of: the plan
    with further lanes behind them. compute: this machine's own rows, told of each block that is done.
    progress: called with the plan and the machine of each lane, "" for this one; None where nobody watches.
    active: whether the window is on in this step.
    """

    given: ForwardArgs
    lanes: Sequence[Lane]
    work: Forward | None
    plan_of: Callable[[Sequence[OtherLane]], BandPlan]
    text_merge: TextMerge
    compute: Callable[[BandPlan, Links, BlockDone | None], Tensor]
    progress: Callable[[BandPlan, Sequence[str]], ForwardProgress] | None
    active: bool


class Machines(Protocol):
    @property
    def text(self) -> str:
        """For the node: who took part in the last forward, and who did not and why."""
        ...

    def prepare(self, model: Any) -> None:
        """Before sampling: have all load the model. Raises ValueError for what cannot travel."""
        ...

    def forward(self, shared: SharedForward) -> list[Tensor] | None:
        """The output's rows by rank, top to bottom; None where no other machine takes part."""
        ...


def work_of(flux: Any, frame: Frame, given: ForwardArgs, window: Window | None) -> Forward | None:
    """One forward, for the prediction; None without a window."""
    if window is None:
        return None
    shape = shape_of(flux, given.x.element_size())
    depth = len(flux.double_blocks), len(flux.single_blocks)
    return Forward(frame.image, window, given.context.shape[1], shape, *depth)
