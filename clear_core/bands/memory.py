"""How much memory a forward takes besides the model's weights: the stock forward, and one in bands.

Activations are counted by hand from what is alive while bands wait in a block; `python dev.py bench --memory` computes
the same with the host's own model: from 4096 px on these are between that and 7% more (at most half a percent less),
for smaller images up to 22% more. Weights that a lane prepares for a block and cuBLAS's workspace come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..flux import CHANNELS, HEAD_DIM
from ..layout import Grid
from .plan import BandPlan
from .schedule import rows_waiting

_MARGIN = 1.05
LEAST_ROWS = 4
"""Thinner bands save no more: the rows that wait for their halo are as many as the window reaches."""
_WORKSPACE = 160 * 2**20  # what a backend gathers and what it answers for one band at a time
MATRIX_WORKSPACE = 32 * 2**20
"""What cuBLAS takes for a thread and stream that multiply matrices, in bytes, on sm_90 and newer. A lane is one."""
OLDER_MATRIX_WORKSPACE = 8320 * 2**10
"""The same before sm_90."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """channels: hidden size; FLUX.1 has 3072, heads of 128, an MLP of four times the width.

    prepared: blocks whose weights a lane holds a second time, in the activations' type: 0 where they are used as they
    lie on the device, 1 where they are cast, one more where the next block's are transferred meanwhile.
    matrix_workspace: bytes.
    """

    channels: int = CHANNELS
    head_dim: int = HEAD_DIM
    mlp_ratio: float = 4.0
    element_size: int = 2
    prepared: int = 1
    matrix_workspace: int = MATRIX_WORKSPACE

    @property
    def token(self) -> int:
        """Bytes of one token's hidden state."""
        return self.channels * self.element_size

    @property
    def positions(self) -> int:
        """Bytes of one token's rotary embedding: float32 [head_dim / 2, 2, 2]."""
        return self.head_dim * 2 * 4

    @property
    def waiting(self) -> int:
        """Bytes a token takes while its single-stream block waits for its neighbours: the first projection (q, k, v and
        the MLP's first half), q and k normalised, both again after RoPE, and a copy of v."""
        return round((3 + self.mlp_ratio + 4 + 1) * self.token)

    @property
    def waiting_double(self) -> int:
        """The same in a double-stream block: q, k and v, q and k after RoPE, and copies of k and v."""
        return 7 * self.token

    @property
    def single_block(self) -> int:
        """Bytes of a single-stream block's weights in the activations' type, for c channels: modulation 3 c x c; query,
        key, value and output 4; the MLP 2 mlp_ratio."""
        return round((7 + 2 * self.mlp_ratio) * self.channels) * self.token

    @property
    def double_block(self) -> int:
        """The same of a double-stream block: text and image each have a modulation of 6 c x c, and the rest."""
        return round(2 * (10 + 2 * self.mlp_ratio) * self.channels) * self.token


def least_that_fits(
    plan_of: Callable[[int], BandPlan], count: int, fits: Callable[[BandPlan], bool]
) -> tuple[int, bool]:
    """The number of bands, doubled from `count` until its plan fits, and whether it does.

    plan_of: the plan for a number of bands. Bands of fewer rows than `LEAST_ROWS` are not tried.
    """
    while not fits(plan := plan_of(count)):
        if 2 * count * LEAST_ROWS > plan.image.height:
            return count, False
        count *= 2
    return count, True


def stock_bytes(image: Grid, text: int, shape: ModelShape, batch: int = 1) -> int:
    """Peak of the host's own forward, the attention's workspace not counted: 24.4 GiB at 8192 x 8192."""
    tokens = image.tokens + text
    # Hidden state, first projection, q and k normalised, in float32 and rotated: what RoPE has alive.
    return batch * round(tokens * ((1 + 3 + shape.mlp_ratio + 2 + 6) * shape.token + shape.positions))


def banded_bytes(plan: BandPlan, text: int, shape: ModelShape, batch: int = 1) -> int:
    """Peak of a forward in bands on the lane that has the most, in bytes."""
    return max(lane_bytes(plan, lane, text, shape, batch) for lane in range(plan.lane_count))


def lane_bytes(plan: BandPlan, lane: int, text: int, shape: ModelShape, batch: int = 1) -> int:
    """Peak of a forward in bands on one lane, in bytes: activations, prepared weights, workspaces."""
    single = activation_bytes(plan, lane, text, shape, batch) + shape.prepared * shape.single_block
    double = _activations(plan, lane, text, shape, shape.waiting_double, batch) + shape.prepared * shape.double_block
    return max(single, double) + shape.matrix_workspace


def activation_bytes(plan: BandPlan, lane: int, text: int, shape: ModelShape, batch: int = 1) -> int:
    """The activations of `lane_bytes` alone, at their peak, and what a backend gathers."""
    return _activations(plan, lane, text, shape, shape.waiting, batch)


def _activations(plan: BandPlan, lane: int, text: int, shape: ModelShape, waiting: int, batch: int) -> int:
    """waiting: bytes of a token in a block that waits for its neighbours."""
    width, mine = plan.image.width, plan.bands_of(lane)
    tokens = sum(len(plan.bands[band]) for band in mine) * width + text
    kept = tokens * (shape.token + shape.positions)
    held = (rows_waiting(plan, lane) * width + text) * waiting
    seen = max(sum(len(rows) for rows in plan.needs[band].values()) for band in mine)
    gathered = 2 * (seen * width + text) * shape.token
    return round(_MARGIN * batch * (kept + held + gathered)) + _WORKSPACE
