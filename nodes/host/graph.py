"""What nodes that expand into a graph need of the host."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_execution.graph_utils import GraphBuilder

from .frame import SETTINGS

SAMPLERS: tuple[str, ...] = tuple(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: tuple[str, ...] = tuple(comfy.samplers.KSampler.SCHEDULERS)

__all__ = ["SAMPLERS", "SCHEDULERS", "GraphBuilder", "has_clear"]


def has_clear(model: Any) -> bool:
    """Whether Apply CLEAR Attention is in a MODEL's chain."""
    return SETTINGS in model.model_options.get("transformer_options", {})
