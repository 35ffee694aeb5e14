"""The machines that take part in one node's MODEL."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import comfy.model_management
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import Links
from ....clear_core.bands.workers import TextMerge
from ....clear_core.cluster.deal import Deal, Offer, by_prediction, equally
from ....clear_core.cluster.predict import Forward
from ..bands.replicas import Lane
from ..forward_args import ForwardArgs
from .driver import Driver, Member, ModelJob, Share
from .graph import Graph, model_files, node_classes, refusal
from .model import digest, tensors_of


class Session:
    """One node's MODEL on a driver's machines. graph, node, output: where the MODEL comes from, in the prompt.
    everyone: nobody is left out for being slow.

    Raises ValueError for one that workers cannot load.
    """

    def __init__(
        self, driver: Driver, graph: Graph, node: str, output: int, model: Any, *, everyone: bool = False
    ) -> None:
        reason = refusal(graph, node_classes())
        if reason:
            raise ValueError(f"the model cannot be loaded on other machines: {reason}. Or leave machines empty.")
        self._driver = driver
        self._job = ModelJob(graph, node, output, model_files(graph), digest(model))
        self._prepared = False
        self._everyone = everyone
        self._dealt: tuple[Hashable, Deal] | None = None
        self._told: list[str] = []

    @property
    def text(self) -> str:
        address, members = self._driver.address, self._driver.members
        lines = list(self._told)
        if not any(line.startswith("with ") for line in lines):
            lines.insert(0, "this machine alone" if members else f"this machine alone: nobody has joined at {address}")
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
        lanes: Sequence[Lane],
        work: Forward | None,
        plan_of: Callable[[Sequence[float]], BandPlan],
        text_merge: TextMerge,
        compute: Callable[[BandPlan, Links], Tensor],
        *,
        active: bool,
    ) -> list[Tensor] | None:
        self._told = []
        if not self._prepared:
            return None

        def share(members: Sequence[Member]) -> Share:
            dealt = self._deal(lanes, work, members)
            owners = [0] * len(lanes)
            for rank, shares in enumerate(dealt.shares, 1):
                owners += [rank] * len(shares)
            plan = plan_of([each for shares in dealt.shares for each in shares])
            ranks = tuple(owners[: plan.lane_count])
            self._told = _told(plan, ranks, members, dealt)
            return Share(plan, ranks)

        tensors = tensors_of(given, given.arguments)
        return self._driver.forward(self._job, tensors, share, text_merge, compute, active=active)

    def _deal(self, lanes: Sequence[Lane], work: Forward | None, members: Sequence[Member]) -> Deal:
        """By what is predicted, kept for as long as nothing has changed."""
        offers: list[Offer] = []
        for member in members:
            assert member.link is not None  # the driver measures before it deals
            offers.append(Offer(member.name, tuple(card.flops for card in member.hello.cards), member.link))
        if self._everyone or work is None:
            return equally(offers)
        key = (work, tuple(member.number for member in members))
        if self._dealt is None or self._dealt[0] != key:
            rates = [self._driver.rate(lane.device) for lane in lanes]
            self._dealt = key, by_prediction(work, rates, [lane.share for lane in lanes], offers)
        return self._dealt[1]


def _told(plan: BandPlan, ranks: Sequence[int], members: Sequence[Member], dealt: Deal) -> list[str]:
    """Lines for the node."""
    lines: list[str] = []
    for rank, member in enumerate(members, 1):
        rows = sum(
            len(plan.bands[band]) for lane, owner in enumerate(ranks) if owner == rank for band in plan.bands_of(lane)
        )
        if rows:
            lines.append(f"with {member.name}: {rows} of {plan.image.height} rows, {member.link}")
        elif rank - 1 in dealt.left_out:
            lines.append(f"without {member.name}: {dealt.left_out[rank - 1]}")
    if dealt.seconds is not None and dealt.alone is not None and lines and lines[0].startswith("with "):
        lines.append(f"predicted: {dealt.seconds:.3g} s a step, {dealt.alone:.3g} s alone")
    return lines
