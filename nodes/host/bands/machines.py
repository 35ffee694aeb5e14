"""Other machines that take part in forwards, as bands see them; `cluster.session` has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import Links
from ....clear_core.bands.workers import TextMerge
from ..forward_args import ForwardArgs


class Machines(Protocol):
    @property
    def text(self) -> str:
        """For the node: who took part in the last forward, and who did not and why."""
        ...

    def prepare(self, model: Any) -> None:
        """Before sampling: have all load the model. Raises ValueError for what cannot travel."""
        ...

    def forward(
        self,
        given: ForwardArgs,
        shares: Sequence[float],
        plan_of: Callable[[Sequence[float]], BandPlan],
        text_merge: TextMerge,
        compute: Callable[[BandPlan, Links], Tensor],
        *,
        active: bool,
    ) -> list[Tensor] | None:
        """The output's rows by rank, top to bottom; None where no other machine takes part.

        shares: of the rows, of this machine's lanes. plan_of: the plan with further lanes of such shares behind them.
        compute: this machine's own rows.
        """
        ...
