"""How many bands a forward needs to fit, and what ComfyUI is told of the memory that sampling will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ....clear_core.bands.memory import (
    LEAST_ROWS,
    MATRIX_WORKSPACE,
    OLDER_MATRIX_WORKSPACE,
    ModelShape,
    banded_bytes,
    lane_bytes,
    least_that_fits,
    stock_bytes,
)
from ....clear_core.bands.plan import BandPlan
from ....clear_core.flux import TEXT_TOKENS
from ....clear_core.layout import Grid
from ...options.bands import MAX_BANDS, BandSettings
from ...options.clear import ClearSettings
from ..attention_call import SETTINGS
from .replicas import Lane

_TO_OVERLAP = 4  # bands a lane
RESERVE = 512 * 2**20  # bytes left to the driver, the page's previews and the like


_HOPPER = 9  # major compute capability from which cuBLAS takes a larger workspace
_LEAST_SHARE = 2  # a card that cannot hold the weights gives one part in so many of itself to a forward


def free_bytes(lanes: Sequence[Lane]) -> int | None:
    """What each lane may take of its device; None on a CPU, where nothing is to be saved.

    Newer hosts answer for a loaded model: with dynamic VRAM they count weights that they can page out.
    """
    shared = Counter(lane.device for lane in lanes)
    patchers = {lane.device: lane.patcher for lane in lanes}
    found: list[int] = []
    for device, count in shared.items():
        if device.type != "cpu":
            ask = getattr(patchers[device], "get_free_memory", comfy.model_management.get_free_memory)
            free: Any = ask(device)
            found.append((int(free) - RESERVE) // count)
    return min(found, default=None)


def is_offloaded(patcher: Any) -> bool:
    """Whether the host transfers some of a model's weights in each step."""
    if patcher is None:
        return False
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    return bool(patcher.model.model_lowvram) or (dynamic and patcher.loaded_size() < patcher.model_size())


def shape_of(
    flux: Any, element_size: int, device: torch.device | None = None, *, offloaded: bool = False
) -> ModelShape:
    """The host's FLUX as the memory model knows it.

    element_size: bytes of an activation's element. device: that it runs on. offloaded: whether some of its weights are
    transferred in each step.
    """
    cast = any(weight.dtype.itemsize != element_size for weight in flux.single_blocks[0].parameters())
    older = device is not None and device.type == "cuda" and _capability(device) < _HOPPER
    return ModelShape(
        flux.hidden_size,
        flux.hidden_size // flux.num_heads,
        element_size=element_size,
        prepared=2 if offloaded else int(cast),
        matrix_workspace=OLDER_MATRIX_WORKSPACE if older else MATRIX_WORKSPACE,
    )


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if torch.cuda.is_available() else _HOPPER


def plans(grid: Grid, clear: ClearSettings, shares: Sequence[float] = (1.0,)) -> Callable[[int], BandPlan]:
    """How a forward is cut, by the number of bands. shares: of the rows, for each lane."""
    window = clear.band_window(active=clear.whole_schedule)
    return lambda count: BandPlan.cut(grid, count, window, down_factor=clear.down_factor, shares=shares)


def most_bands(grid: Grid) -> int:
    """The number of bands beyond which more save nothing."""
    return max(1, min(MAX_BANDS, grid.height // LEAST_ROWS))


def fitting_count(
    plan_of: Callable[[int], BandPlan], lanes: int, free: int | None, text: int, shape: ModelShape, batch: int
) -> int:
    """The least number of bands that fits into `free` bytes, doubled until it does.

    On several cards four a lane at least: its borders publish first and attend last, and the two in between hide what
    travels meanwhile. free: None on a CPU, where nothing is to be saved and nothing travels.
    """
    if free is None:
        return lanes
    count = lanes
    if lanes > 1:
        rows = plan_of(lanes).image.height
        count = max(lanes, min(_TO_OVERLAP * lanes, rows // LEAST_ROWS))
    return least_that_fits(plan_of, count, lambda plan: banded_bytes(plan, text, shape, batch) <= free)[0]


def plan_that_fits(
    plan_of: Callable[[int], BandPlan],
    lanes: Sequence[Lane],
    others: Sequence[int | None],
    flux: Any,
    element_size: int,
    replicated: int,
    batch: int,
) -> BandPlan:
    """How a forward is cut with `bands` 0, as the memory of the lanes' devices is now. For the rest see `shape_of`.

    others: bytes that the lanes of other machines may take; None where nothing is to be saved. replicated: tokens of
    the text and of the references, which every lane has.
    """
    offloaded = any(is_offloaded(lane.patcher) for lane in lanes)
    shape = shape_of(flux, element_size, lanes[0].device, offloaded=offloaded)
    free = min((each for each in (free_bytes(lanes), *others) if each is not None), default=None)
    return plan_of(fitting_count(plan_of, len(lanes) + len(others), free, replicated, shape, batch))


@dataclass(frozen=True, slots=True)
class Demand:
    """What decides how much of a device a sampling run takes, and what there is for it."""

    grid: Grid
    plan_of: Callable[[int], BandPlan]
    shape: ModelShape
    room: int  # bytes, beside the weights; of the lane that has least

    @classmethod
    def of(cls, model: Any, noise_shape: Sequence[int], clear: ClearSettings, lanes: Sequence[Lane] = ()) -> Demand:
        """model: a patched MODEL. noise_shape: of the latent, (batch, channels, height, width). lanes: none for one."""
        flux, home = model.get_model_object("diffusion_model"), torch.device(model.load_device)
        grid = Grid(*(-(-side // flux.patch_size) for side in noise_shape[2:]))
        shares = [lane.share for lane in lanes] or [1.0]
        shared = Counter(lane.device for lane in lanes) or {home: 1}
        rooms = [_room(model, device) // count for device, count in shared.items() if device.type != "cpu"]
        room = min(rooms, default=_room(model, home))
        element_size = max(2, model.model.get_dtype().itemsize)  # weights may be fp8, activations are not
        shape = shape_of(flux, element_size, home)
        plan_of = plans(grid, clear, shares)
        if banded_bytes(plan_of(most_bands(grid)), TEXT_TOKENS, shape) > room:
            # Some weights will be offloaded, so those of the next block are on their way.
            shape, room = replace(shape, prepared=2), max(room, min(map(_total, shared)) // _LEAST_SHARE)
        return cls(grid, plan_of, shape, room)

    def count(self, settings: BandSettings, lanes: int, batch: int) -> int:
        """The number of bands: as set, or the least that fits `batch` latents at once."""
        asked = settings.count(self.grid)
        return asked or fitting_count(self.plan_of, lanes, self.room, TEXT_TOKENS, self.shape, batch)


def _room(model: Any, device: torch.device) -> int:
    """Bytes of a device beside the model's weights."""
    return _total(device) - model.model_size() - RESERVE


def rooms(model: Any, lanes: Sequence[Lane]) -> tuple[int, ...]:
    """Bytes that a forward may take on each lane's device beside the weights of `model`, which need not be loaded; 0 on
    a CPU, where nothing is to be saved."""
    shared = Counter(lane.device for lane in lanes)
    found: list[int] = []
    for lane in lanes:
        room = 0
        if lane.device.type != "cpu":
            # Of weights that do not fit, the host transfers some in each step.
            room = max(_room(model, lane.device), _total(lane.device) // _LEAST_SHARE) // shared[lane.device]
        found.append(room)
    return tuple(found)


def _total(device: torch.device) -> int:
    total: Any = comfy.model_management.get_total_memory(device)
    return int(total)


def shape_for_estimate(
    model: Any, noise_shape: Sequence[int], settings: BandSettings, lanes: Sequence[Lane] = ()
) -> Sequence[int]:
    """A latent's shape from which the host estimates the memory that bands really take on the model's own device.

    The host knows nothing of bands: for 8192 px it would reserve tens of gigabytes, and offload the model for it.
    It counts on two latents a batch, conditional and unconditional, and doubles the batch of this shape itself.
    So the bands are as many as two need, and the height is scaled by what one needs.
    """
    clear = model.model_options.get("transformer_options", {}).get(SETTINGS)
    home = torch.device(model.load_device)
    if clear is None or home.type == "cpu" or len(noise_shape) != 4:
        return noise_shape
    batch, channels, height, width = noise_shape
    needs = _needs(model, noise_shape, settings, lanes, clear)
    if needs is None:
        return noise_shape
    need = needs[home]
    estimate = model.model.memory_required([batch, channels, height, width])
    return [batch, channels, max(1, min(height, round(height * need / max(1, estimate)))), width]


def replica_needs(
    model: Any, noise_shape: Sequence[int], settings: BandSettings, lanes: Sequence[Lane]
) -> dict[torch.device, int]:
    """Bytes that a forward of one batch takes on each lane's device besides the weights, for the host to leave free."""
    clear = model.model_options.get("transformer_options", {}).get(SETTINGS)
    if clear is None or len(noise_shape) != 4:
        return {}
    needs = _needs(model, noise_shape, settings, lanes, clear)
    if needs is None:
        demand = Demand.of(model, noise_shape, clear, lanes)
        return {lanes[0].device: stock_bytes(demand.grid, TEXT_TOKENS, demand.shape, noise_shape[0])}
    return needs


def _needs(
    model: Any, noise_shape: Sequence[int], settings: BandSettings, lanes: Sequence[Lane], clear: ClearSettings
) -> dict[torch.device, int] | None:
    """Bytes of each device, all its lanes together; None where the image is not cut."""
    demand, batch = Demand.of(model, noise_shape, clear, lanes), noise_shape[0]
    plan = demand.plan_of(demand.count(settings, max(1, len(lanes)), 2 * batch))
    if len(plan.bands) == 1:
        return None
    home = torch.device(model.load_device)
    kept: Any = comfy.model_management.extra_reserved_memory()  # the host leaves that anyway
    more = max(0, RESERVE - int(kept))
    needs: Counter[torch.device] = Counter()
    for lane in range(plan.lane_count):
        device = lanes[lane].device if lanes else home
        needs[device] += lane_bytes(plan, lane, TEXT_TOKENS, demand.shape, batch)
    return {device: need + more for device, need in needs.items()}
