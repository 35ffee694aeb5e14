"""Out of memory in one attention layer: free the cache and retry the layer once with a smaller workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import comfy.model_management

from .run_log import RunLog

Result = TypeVar("Result")

_LESS = 4  # the retry gathers a quarter of the first try


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host treats it as out of memory; newer hosts know several kinds."""
    tell = getattr(comfy.model_management, "is_oom", None)
    return bool(tell(error)) if tell else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def with_less_memory(run: Callable[[int], Result], budget: int, run_log: RunLog) -> Result:
    """Run a layer with a workspace of `budget` bytes; out of memory, retry it once with a quarter."""
    try:
        return run(budget)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: by here the error, and with it all that the first try had allocated, is gone.
    comfy.model_management.soft_empty_cache()
    less = max(1, budget // _LESS)
    result = run(less)
    run_log.note(f"out of memory in a layer; retried with a workspace of {less / 2**20:.0f} MB: slower")
    return result
