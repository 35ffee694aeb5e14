"""FLUX's time shift set to a fixed value, as the core's node ModelSamplingFlux does."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling

_SAMPLING = "model_sampling"


def shifted(model: Any, shift: float) -> tuple[Any, str]:
    """A clone of a MODEL with the time shift, and what became of it, a clause.

    A model without FLUX's shift (schnell) and one that another node has given a schedule come back as they are.
    """
    if _SAMPLING in model.object_patches:
        return model, "time shift of the node before this one"
    if not isinstance(model.get_model_object(_SAMPLING), comfy.model_sampling.ModelSamplingFlux):
        return model, "time shift of the model"
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    # Of the same value at both ends it does not depend on the size.
    (patched,) = ModelSamplingFlux().patch(model, max_shift=shift, base_shift=shift, width=1024, height=1024)
    return patched, f"time shift {shift:g}, fixed"
