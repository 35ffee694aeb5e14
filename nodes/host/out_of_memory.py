"""When a card's memory is full: one layer is tried again with less, and the person hears which tiling would fit.

The error itself goes on as it is: ComfyUI frees its models, and the page shows what it always shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP

from ...clear_core.call import AttentionCall, AttentionResult
from ...clear_core.memory import banded_bytes
from ..report import RunReport
from .band_memory import TEXT, Demand, fitting_count, most_bands
from .frame import BANDS, SETTINGS

_LESS = 4  # the second try gathers a quarter of the first


def is_out_of_memory(error: BaseException) -> bool:
    """As the host tells it; newer ones know more kinds than one."""
    tell = getattr(comfy.model_management, "is_oom", None)
    return bool(tell(error)) if tell else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def run_sparing(
    run: Callable[[AttentionCall], AttentionResult], call: AttentionCall, report: RunReport
) -> AttentionResult:
    """Run a layer; where memory is full, free what is cached and run it once more with a smaller budget."""
    try:
        return run(call)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Out here, where the error and with it all that the first try had allocated are gone.
    comfy.model_management.soft_empty_cache()
    less = max(1, call.budget // _LESS)
    result = run(replace(call, budget=less))
    report.note(f"memory was full in a layer, which went on gathering {less / 2**20:.0f} MB at a time: slower")
    return result


def advise(report: RunReport, model: Any, noise_shape: Sequence[int], *, can_be_cut: bool) -> None:
    """Say on the node and in the log what would fit. Never raises: the error that led here is what counts."""
    with suppress(Exception):
        report.note(_advice(model, noise_shape, can_be_cut))


def _advice(model: Any, noise_shape: Sequence[int], can_be_cut: bool) -> str:
    """Which tiling would fit, from the memory model. model: a patched MODEL. noise_shape: of the latent."""
    if len(noise_shape) != 4 or not can_be_cut:
        return "out of memory: choose a smaller image, or weights of 8 bits (fp8)"
    batch, demand = noise_shape[0], Demand.of(model, noise_shape, model.model_options["transformer_options"][SETTINGS])
    grid, room = demand.grid, demand.room
    in_bands = bool(model.get_wrappers(WrappersMP.DIFFUSION_MODEL, BANDS))
    count = most_bands(grid) if in_bands else max(2, fitting_count(demand.plan_of, 1, room, TEXT, demand.shape, batch))
    need = banded_bytes(demand.plan_of(count), TEXT, demand.shape, batch)
    would = f"with {count} bands it would take {_gib(need)} besides the weights"
    size = f"out of memory at {grid.width * 16} x {grid.height * 16} px"
    if need > room:
        return (
            f"{size}: even {would}, and {_gib(max(0, room))} is what the card has for it. Choose a smaller image, "
            "or weights of 8 bits (fp8)"
        )
    if in_bands:
        return f"{size}: {would}. Set bands to {count} on CLEAR Multi-GPU"
    return f"{size}: {would}. Put CLEAR Multi-GPU behind Apply CLEAR Attention and set bands to {count}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
