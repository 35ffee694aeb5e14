"""The machines that take part in one node's MODEL."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import comfy.model_management
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.cluster.deal import Deal, Offer, by_prediction, equally
from ....clear_core.cluster.predict import Forward
from ..bands.machines import OtherLane, SharedForward
from ..bands.replicas import Lane
from .driver import Driver, Share
from .graph import Graph, model_files, node_classes, refusal
from .member import Dealt, Member, ModelJob
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

    def forward(self, shared: SharedForward) -> list[Tensor] | None:
        self._told = []
        if not self._prepared:
            return None

        def share(members: Sequence[Member]) -> Share:
            dealt = self._deal(shared.lanes, shared.work, members)
            owners = [0] * len(shared.lanes)
            for rank, shares in enumerate(dealt.shares, 1):
                owners += [rank] * len(shares)
            pairs = zip(dealt.shares, members, strict=True)
            others = [
                OtherLane(*each) for shares, one in pairs for each in zip(shares, one.memory, strict=bool(shares))
            ]
            plan = shared.plan_of(others)
            ranks = tuple(owners[: plan.lane_count])
            for rank, member in enumerate(members, 1):
                member.dealt = Dealt(_rows(plan, ranks, rank), plan.image.height, dealt.left_out.get(rank - 1, ""))
            self._told = _told(members, dealt)
            names = ["", *(member.name for member in members)]
            progress = shared.progress and shared.progress(plan, [names[rank] for rank in ranks])
            return Share(plan, ranks, progress)

        tensors = tensors_of(shared.given, shared.given.arguments)
        return self._driver.forward(self._job, tensors, share, shared.text_merge, shared.compute, active=shared.active)

    def _deal(self, lanes: Sequence[Lane], work: Forward | None, members: Sequence[Member]) -> Deal:
        """By what is predicted, kept for as long as nothing has changed."""
        offers: list[Offer] = []
        for member in members:
            assert member.link is not None  # the driver measures before it deals
            memory = None if None in member.memory else sum(filter(None, member.memory))
            rates = tuple(card.flops for card in member.hello.cards)
            offers.append(Offer(member.name, rates, member.link, memory))
        if self._everyone or work is None:
            return equally(offers)
        key = (work, tuple((member.number, member.memory) for member in members))
        if self._dealt is None or self._dealt[0] != key:
            rates = [self._driver.rate(lane.device) for lane in lanes]
            self._dealt = key, by_prediction(work, rates, [lane.share for lane in lanes], offers)
        return self._dealt[1]


def _rows(plan: BandPlan, ranks: Sequence[int], rank: int) -> int:
    """Of the image, that a rank computes."""
    lanes = [lane for lane, owner in enumerate(ranks) if owner == rank]
    return sum(len(plan.bands[band]) for lane in lanes for band in plan.bands_of(lane))


def _told(members: Sequence[Member], dealt: Deal) -> list[str]:
    """Lines for the node."""
    lines: list[str] = []
    for member in members:
        if member.dealt.rows:
            lines.append(f"with {member.name}: {member.dealt.rows} of {member.dealt.of} rows, {member.link}")
        elif member.dealt.left_out:
            lines.append(f"without {member.name}: {member.dealt.left_out}")
    if dealt.seconds is not None and dealt.alone is not None and lines and lines[0].startswith("with "):
        lines.append(f"predicted: {dealt.seconds:.3g} s a step, {dealt.alone:.3g} s alone")
    return lines
