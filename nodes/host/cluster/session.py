"""The machines that take part in one node's MODEL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import Links
from ....clear_core.bands.workers import TextMerge
from ..forward_args import ForwardArgs
from .driver import Driver, Member, ModelJob, Share
from .graph import Graph, model_files, node_classes, refusal
from .model import digest, tensors_of


class Session:
    """One node's MODEL on a driver's machines. graph, node, output: where the MODEL comes from, in the prompt.

    Raises ValueError for one that workers cannot load.
    """

    def __init__(self, driver: Driver, graph: Graph, node: str, output: int, model: Any) -> None:
        reason = refusal(graph, node_classes())
        if reason:
            raise ValueError(f"the model cannot be loaded on other machines: {reason}. Or leave machines empty.")
        self._driver = driver
        self._job = ModelJob(graph, node, output, model_files(graph), digest(model))
        self._prepared = False
        self._took_part: list[str] = []

    @property
    def text(self) -> str:
        address, members = self._driver.address, self._driver.members
        lines = [f"with {name}" for name in self._took_part] or [f"this machine alone: nobody has joined at {address}"]
        if members and not self._took_part:
            lines = ["this machine alone"]
        lines += [f"without {member.name}: {member.problem}" for member in members if member.problem]
        return "\n".join(lines)

    def prepare(self, model: Any) -> None:
        if getattr(model, "current_hooks", None) is not None or model.hook_patches:
            raise ValueError(
                "LoRAs that are scheduled by hooks cannot be sent to other machines yet: load them with the ordinary "
                "loader, or leave machines empty."
            )
        if digest(model) != self._job.digest:
            raise ValueError(
                "The model is changed behind the node that has machines, which other machines do not see: put LoRA "
                "and patch nodes before it, or leave machines empty."
            )
        self._prepared = True
        self._driver.prepare(self._job, comfy.model_management.throw_exception_if_processing_interrupted)

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
        self._took_part = []
        if not self._prepared:
            return None
        took_part: list[Member] = []

        def deal(members: Sequence[Member]) -> Share:
            others: list[float] = []
            ranks = [0] * len(shares)
            for rank, member in enumerate(members, 1):
                for _ in member.hello.cards:
                    others.append(1.0)
                    ranks.append(rank)
            plan = plan_of(others)
            took_part[:] = [members[rank - 1] for rank in dict.fromkeys(ranks[: plan.lane_count]) if rank]
            return Share(plan, tuple(ranks[: plan.lane_count]))

        tensors = tensors_of(given, given.arguments)
        parts = self._driver.forward(self._job, tensors, deal, text_merge, compute, active=active)
        if parts is not None:
            self._took_part = [member.name for member in took_part]
        return parts
