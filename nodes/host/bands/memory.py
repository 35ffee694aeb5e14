"""How many bands a forward needs to fit, and what ComfyUI is told of the memory that sampling will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ....clear_core.bands.memory import ModelShape, banded_bytes
from ....clear_core.bands.plan import BandPlan
from ....clear_core.flux import TEXT_TOKENS
from ....clear_core.layout import Grid
from ...options.bands import MAX_BANDS, BandSettings
from ...options.clear import ClearSettings
from ..attention_call import SETTINGS
from .replicas import Lane

_LEAST_ROWS = 4  # thinner bands save no more: the rows that wait for their halo are as many as the window reaches
RESERVE = 512 * 2**20  # bytes left to the driver, the page's previews and the like


def free_bytes(lanes: Sequence[Lane]) -> int | None:
    """What each lane may take of its device; None on a CPU, where nothing is to be saved."""
    shared = Counter(lane.device for lane in lanes)
    found: list[int] = []
    for device, count in shared.items():
        if device.type != "cpu":
            free: Any = comfy.model_management.get_free_memory(device)
            found.append((int(free) - RESERVE) // count)
    return min(found, default=None)


def shape_of(flux: Any, element_size: int) -> ModelShape:
    """The host's FLUX as the memory model knows it. element_size: bytes of an activation's element."""
    return ModelShape(flux.hidden_size, flux.hidden_size // flux.num_heads, element_size=element_size)


def plans(grid: Grid, clear: ClearSettings) -> Callable[[int], BandPlan]:
    """How a forward on one lane is cut, by the number of bands."""

    window = clear.band_window(active=clear.whole_schedule)
    return lambda count: BandPlan.cut(grid, count, window, down_factor=clear.down_factor)


def most_bands(grid: Grid) -> int:
    """The number of bands beyond which more save nothing."""
    return max(1, min(MAX_BANDS, grid.height // _LEAST_ROWS))


def fitting_count(
    plan_of: Callable[[int], BandPlan], lanes: int, free: int | None, text: int, shape: ModelShape, batch: int
) -> int:
    """The least number of bands that fits into `free` bytes: one a lane, two, four, ..."""
    count = lanes
    while free is not None:
        plan = plan_of(count)
        if banded_bytes(plan, text, shape, batch) <= free or 2 * count * _LEAST_ROWS > plan.image.height:
            break
        count *= 2
    return count


@dataclass(frozen=True, slots=True)
class Demand:
    """What decides how much of a device a sampling run takes, and what there is for it."""

    grid: Grid
    plan_of: Callable[[int], BandPlan]
    shape: ModelShape
    room: int  # bytes, beside the weights

    @classmethod
    def of(cls, model: Any, noise_shape: Sequence[int], clear: ClearSettings) -> Demand:
        """model: a patched MODEL. noise_shape: of the latent, (batch, channels, height, width)."""
        flux = model.get_model_object("diffusion_model")
        grid = Grid(*(-(-side // flux.patch_size) for side in noise_shape[2:]))
        shape = shape_of(flux, max(2, model.model.get_dtype().itemsize))  # weights may be fp8, activations are not
        total = comfy.model_management.get_total_memory(torch.device(model.load_device))
        return cls(grid, plans(grid, clear), shape, total - model.model_size() - RESERVE)


def shape_for_estimate(model: Any, noise_shape: Sequence[int], settings: BandSettings) -> Sequence[int]:
    """A latent's shape from which the host estimates the memory that bands really take.

    The host knows nothing of bands: for 8192 px it would reserve tens of gigabytes, and offload the model for it.
    It counts on two latents a batch, conditional and unconditional, and doubles the batch of this shape itself.
    So the bands are as many as two need, and the height is scaled by what one needs.
    """
    clear = model.model_options.get("transformer_options", {}).get(SETTINGS)
    home = torch.device(model.load_device)
    if clear is None or home.type == "cpu" or len(noise_shape) != 4:
        return noise_shape
    batch, channels, height, width = noise_shape
    demand = Demand.of(model, noise_shape, clear)
    count = settings.bands or fitting_count(demand.plan_of, 1, demand.room, TEXT_TOKENS, demand.shape, 2 * batch)
    if count == 1:
        return noise_shape
    need = banded_bytes(demand.plan_of(count), TEXT_TOKENS, demand.shape, batch)
    estimate = model.model.memory_required([batch, channels, height, width])
    return [batch, channels, max(1, min(height, round(height * need / max(1, estimate)))), width]
