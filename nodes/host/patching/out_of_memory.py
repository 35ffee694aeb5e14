"""Out of memory in a sampling run: the node names the number of bands that would fit.

The error itself is raised on unchanged: ComfyUI frees its models, and the page shows what it always shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from comfy.patcher_extension import WrappersMP

from ....clear_core.bands.memory import banded_bytes
from ....clear_core.flux import PIXELS_PER_TOKEN, TEXT_TOKENS
from ..attention_call import BANDS, SETTINGS
from ..bands.memory import Demand, fitting_count, most_bands
from ..run_log import RunLog


def advise(run_log: RunLog, model: Any, noise_shape: Sequence[int], *, can_be_cut: bool) -> None:
    """Name on the node and in the log what would fit. Never raises: the error that led here is what counts."""
    with suppress(Exception):
        run_log.note(_advice(model, noise_shape, can_be_cut))


def _advice(model: Any, noise_shape: Sequence[int], can_be_cut: bool) -> str:
    """Which tiling would fit, from the memory model. model: a patched MODEL. noise_shape: of the latent."""
    if len(noise_shape) != 4 or not can_be_cut:
        return "out of memory: choose a smaller image or fp8 weights"
    batch, demand = noise_shape[0], Demand.of(model, noise_shape, model.model_options["transformer_options"][SETTINGS])
    grid, room = demand.grid, demand.room
    in_bands = bool(model.get_wrappers(WrappersMP.DIFFUSION_MODEL, BANDS))
    count = (
        most_bands(grid)
        if in_bands
        else max(2, fitting_count(demand.plan_of, 1, room, TEXT_TOKENS, demand.shape, batch))
    )
    need = banded_bytes(demand.plan_of(count), TEXT_TOKENS, demand.shape, batch)
    would = f"with {count} bands it would take {_gib(need)} besides the weights"
    size = f"out of memory at {grid.width * PIXELS_PER_TOKEN} x {grid.height * PIXELS_PER_TOKEN} px"
    if need > room:
        return (
            f"{size}: even {would}, and the card has {_gib(max(0, room))} for that. Choose a smaller image or fp8 "
            "weights"
        )
    if in_bands:
        return f"{size}: {would}. Set bands to {count} on CLEAR Multi-GPU"
    return f"{size}: {would}. Add CLEAR Multi-GPU after Apply CLEAR Attention and set bands to {count}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
