"""The prompt of an image that ComfyUI has saved: from the sampler before it, up its positive input, to the text."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from comfy_execution.graph_utils import is_link

Nodes = Mapping[str, Any]

_CONDITIONING: Final = ("guider", "positive", "conditioning", "conditioning_1", "conditioning_to", "cond1")
"""Inputs that lead from a sampler to the conditioning of its positive prompt, or on from there."""

_SAMPLER: Final = ("guider", "positive")
_TEXT: Final = ("text", "t5xxl", "clip_l", "text_g", "prompt")
"""Inputs of nodes that encode a text; of FLUX's two, T5's is the whole prompt."""

_STRING: Final = ("value", "string", "text", "prompt")
"""Inputs of nodes that only hold a text which another node encodes."""


def prompt_in(metadata: Mapping[Any, Any]) -> str | None:
    """metadata: an image's `info`, as Pillow reads it; its "prompt" is ComfyUI's graph as JSON. None without a text."""
    try:
        graph = json.loads(metadata["prompt"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(graph, dict):
        return None
    nodes = {name: node["inputs"] for name, node in graph.items() if _is_node(node)}
    texts = (_positive_text(nodes, node, set()) for node in _samplers(nodes))
    return next((text for text in texts if text), None)


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _samplers(nodes: Nodes) -> Iterator[str]:
    """Nodes with a positive prompt, the nearest to a saved image first: of several stages, the last one."""
    saving = [name for name, inputs in nodes.items() if is_link(inputs.get("images"))]
    seen: set[str] = set()
    for starts in (saving, nodes):  # all nodes, where none that saves leads to a prompt
        queue = deque(starts)
        while queue:
            name = queue.popleft()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            if any(is_link(nodes[name].get(key)) for key in _SAMPLER):
                yield name
            queue.extend(value[0] for value in nodes[name].values() if is_link(value))


def _positive_text(nodes: Nodes, name: str, seen: set[str]) -> str | None:
    """The text up the conditioning of a node."""
    inputs = nodes.get(name)
    if inputs is None or name in seen:
        return None
    seen.add(name)
    for key in _TEXT:
        text = _string(nodes, inputs.get(key), set())
        if text:
            return text
    for key in _CONDITIONING:
        link = inputs.get(key)
        if is_link(link):
            text = _positive_text(nodes, link[0], seen)
            if text:
                return text
    return None


def _string(nodes: Nodes, value: Any, seen: set[str]) -> str | None:
    """A widget's text, or that of the node which it is linked to."""
    if isinstance(value, str):
        return value.strip() or None
    if not is_link(value) or value[0] in seen or value[0] not in nodes:
        return None
    seen.add(value[0])
    found = (_string(nodes, nodes[value[0]].get(key), seen) for key in _STRING)
    return next((text for text in found if text), None)
