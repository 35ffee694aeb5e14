"""Whether a step fits into the memory of its devices beside the weights, and what would make it fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..bands.memory import ModelShape, lane_bytes, stock_bytes
from ..bands.plan import BandPlan
from ..layout import Grid

_LEAST_ROWS = 4  # thinner bands save no more


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
    """Of the device that lacks the most, or has the least left.

    plan: None for no bands. devices: of each lane. room: bytes on each device for weights and step.
    """
    steps: Counter[str] = Counter()
    if plan is None or len(plan.bands) == 1:
        steps[devices[0]] = stock_bytes(image, text, shape)
    else:
        for lane in range(plan.lane_count):
            steps[devices[lane]] += lane_bytes(plan, lane, text, shape)
    needs = [Need(device, weights, step, room[device]) for device, step in steps.items()]
    return max(needs, key=lambda need: need.total - need.room)


def least_count(plan_of: Callable[[int], BandPlan], lanes: int, need_of: Callable[[BandPlan], Need]) -> int | None:
    """The least number of bands that fits, doubled until it does; None where none fits."""
    count = lanes
    while True:
        plan = plan_of(count)
        if need_of(plan).missing == 0:
            return count
        if 2 * count * _LEAST_ROWS > plan.image.height:
            return None
        count *= 2
