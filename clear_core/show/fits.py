"""Whether a step fits into the memory of its devices beside the weights, and what would make it fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..bands.memory import ModelShape, lane_bytes, least_that_fits, stock_bytes
from ..bands.plan import BandPlan
from ..layout import Grid


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one device. weights: of each copy of the model there. step: what one step takes at its peak.

    room: what there is for both.
    """

    device: str
    weights: int
    step: int
    room: int

    @property
    def total(self) -> int:
        return self.weights + self.step

    @property
    def missing(self) -> int:
        """0 where it fits."""
        return max(0, self.total - self.room)


def worst_need(
    plan: BandPlan | None,
    image: Grid,
    text: int,
    shape: ModelShape,
    weights: int,
    devices: Sequence[str],
    room: dict[str, int],
) -> Need:
    """Of the device that lacks the most, or has the least left. room: bytes on each device for weights and step.

    For the rest see `step_bytes`.
    """
    steps = step_bytes(plan, image, text, shape, devices)
    needs = [Need(device, weights, step, room[device]) for device, step in steps.items()]
    return max(needs, key=lambda need: need.total - need.room)


def step_bytes(
    plan: BandPlan | None, image: Grid, text: int, shape: ModelShape, devices: Sequence[str]
) -> Counter[str]:
    """Bytes that one step takes of each device beside the weights, all its lanes together.

    plan: None for no bands. text: tokens. devices: of each lane.
    """
    if plan is None or len(plan.bands) == 1:
        return Counter({devices[0]: stock_bytes(image, text, shape)})
    steps: Counter[str] = Counter()
    for lane in range(plan.lane_count):
        steps[devices[lane]] += lane_bytes(plan, lane, text, shape)
    return steps


def least_count(plan_of: Callable[[int], BandPlan], lanes: int, need_of: Callable[[BandPlan], Need]) -> int | None:
    """The least number of bands that fits, doubled until it does; None where none fits."""
    count, found = least_that_fits(plan_of, lanes, lambda plan: need_of(plan).missing == 0)
    return count if found else None
