"""Out of memory in one attention layer: free what is cached and run the layer once more with a smaller workspace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.model_management

from ...clear_core.call import AttentionCall, AttentionResult
from .run_log import RunReport

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
