"""Host features for nodes that expand into a graph."""

from __future__ import annotations

from typing import Any

import comfy.cli_args
import comfy.samplers
from comfy_execution.graph_utils import GraphBuilder

from .attention_call import SETTINGS

SAMPLERS: tuple[str, ...] = tuple(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: tuple[str, ...] = tuple(comfy.samplers.KSampler.SCHEDULERS)

__all__ = ["SAMPLERS", "SCHEDULERS", "GraphBuilder", "call_number", "has_clear", "keeps_outputs"]


def call_number(graph: GraphBuilder) -> int:
    """Which call of its node a new graph belongs to: the host calls a node once for each item of a list."""
    return int(graph.prefix.split(".")[-3])  # "node.call.graph."


def keeps_outputs() -> bool:
    """Whether ComfyUI caches the outputs of nodes; with --cache-none it computes a link's value again."""
    return not comfy.cli_args.args.cache_none


def has_clear(model: Any) -> bool:
    """Whether Apply CLEAR Attention is in a MODEL's chain."""
    return SETTINGS in model.model_options.get("transformer_options", {})
