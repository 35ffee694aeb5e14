"""Host features for nodes that expand into a graph."""

from __future__ import annotations

from typing import Any

import comfy.cli_args
import comfy.samplers
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder, is_link

from .attention_call import SETTINGS

_APPLYING = frozenset({"CLEARApply", "CLEARPreset", "CLEARHighRes", "CLEARSweep"})

SAMPLERS: tuple[str, ...] = tuple(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: tuple[str, ...] = tuple(comfy.samplers.KSampler.SCHEDULERS)

__all__ = [
    "SAMPLERS",
    "SCHEDULERS",
    "ExecutionBlocker",
    "GraphBuilder",
    "call_number",
    "has_clear",
    "keeps_outputs",
    "no_clear_after",
    "output_is_used",
]


def call_number(graph: GraphBuilder) -> int:
    """Which call of its node a new graph belongs to: the host calls a node once for each item of a list."""
    return int(graph.prefix.split(".")[-3])  # "node.call.graph."


def keeps_outputs() -> bool:
    """Whether ComfyUI caches the outputs of nodes; with --cache-none it computes a link's value again."""
    return not comfy.cli_args.args.cache_none


def has_clear(model: Any) -> bool:
    """Whether Apply CLEAR Attention is in a MODEL's chain."""
    return SETTINGS in model.model_options.get("transformer_options", {})


def no_clear_after(prompt: Any, node_id: str) -> bool:
    """Whether no node that uses the outputs of this one, directly or not, applies CLEAR.

    prompt: a DynamicPrompt, which also holds what nodes have expanded into.
    """
    nodes = [(other, prompt.get_node(other)) for other in prompt.all_node_ids()]
    after, before = {node_id}, 0
    while len(after) > before:
        before = len(after)
        after |= {
            other
            for other, node in nodes
            if any(is_link(value) and value[0] in after for value in node["inputs"].values())
        }
    return not any(other in after and node["class_type"] in _APPLYING for other, node in nodes)


def output_is_used(prompt: Any, node_id: str, output: int) -> bool:
    """Whether a node of the prompt, a DynamicPrompt, has this output of a node as an input."""
    inputs = (prompt.get_node(other)["inputs"] for other in prompt.all_node_ids())
    return any(is_link(value) and value == [node_id, output] for given in inputs for value in given.values())
