"""A forward in bands replayed with given compute and copy times: how much of the copies the order of work hides.

The replay executes the very steps of `schedule` and starts the very copies of `schedule.copies`; its trace equals that
of a real forward, event by event. Times are a model: `Costs` are given, one lane computes one step at a time, and one
copy at a time travels from a lane to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..flux import CHANNELS, HEAD_DIM
from .plan import BandPlan
from .replay import Costs, Replay, Timeline
from .schedule import Copy, share_of_rows


def simulate(plan: BandPlan, costs: Costs | Sequence[Costs], layers: int, *, pooled: bool = False) -> Timeline:
    """Replay `layers` layers on all lanes.

    costs: of all lanes, or one for each. pooled: whether bands have pooled keys and values.
    """
    each = [costs] * plan.lane_count if isinstance(costs, Costs) else costs
    if len(each) != plan.lane_count:
        raise ValueError(f"costs of {len(each)} lanes were given for {plan.lane_count}: give each lane its own")
    replay = Replay(plan, pooled=pooled)
    for _ in range(layers):
        replay.layer(each)
    replay.timeline.events.sort(key=lambda timed: timed.start)  # stable: a lane's events stay in its order
    return replay.timeline


@dataclass(frozen=True, slots=True)
class Card:
    """flops: of matrix products, a second. attention: share of it that attention reaches. link: bytes a second."""

    flops: float
    attention: float
    link: float


BEFORE_SINGLE, BEFORE_DOUBLE, PRODUCTS = 7, 3, 12
"""Of the products of channels^2 that each token takes in a block, those before its attention: q, k, v, and in a
single-stream block the MLP's first half; and all of them."""


def flux_costs(
    plan: BandPlan,
    card: Card,
    text: int = 512,
    *,
    channels: int = CHANNELS,
    size: int = 2,
    before: int = BEFORE_SINGLE,
) -> Costs:
    """What a block of FLUX costs on a card, by counting its products.

    size: bytes of an activation's element. before: products of channels^2 a token that come before the attention.
    """
    rate, width = card.flops, plan.image.width
    keys = plan.image.tokens if plan.window is None else plan.window.tokens
    earlier, later = (2 * part * channels**2 / rate for part in (before, PRODUCTS - before))
    looks = 4 * channels / (rate * card.attention)

    def copy(sent: Copy) -> float:
        return copy_bytes(plan, sent, text, channels=channels, size=size) / card.link

    return Costs(
        publish=width * (earlier + looks * text),
        attend=width * (later + looks * (keys + text)),
        replicated=text * (earlier + later) / 2,
        merge=looks * text * text,
        copy=copy,
    )


def copy_bytes(
    plan: BandPlan, copy: Copy, text: int, *, channels: int = CHANNELS, head_dim: int = HEAD_DIM, size: int = 2
) -> int:
    """Bytes of a copy at batch 1, as `Exchange` counts them.

    text: replicated tokens. size: bytes of an activation's element; partial attention travels in float32. Raises
    ValueError for pooled keys and values, which are not modelled.
    """
    if copy.rows is not None:
        return 2 * len(copy.rows) * plan.image.width * channels * size
    if copy.kind == "pooled":
        raise ValueError("pooled copies are not modelled")
    share = share_of_rows(text, plan.lane_count, copy.target if copy.kind == "partial" else copy.source)
    token = 4 * (channels + channels // head_dim) if copy.kind == "partial" else channels * size
    return (share.stop - share.start) * token
