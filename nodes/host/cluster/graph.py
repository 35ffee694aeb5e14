"""The part of a prompt that makes a MODEL, as a worker runs it: what it may hold, and the files that it reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

Graph = dict[str, dict[str, Any]]
"""In ComfyUI's API format: class_type and inputs by the id of the node."""

_OUTSIDE = re.compile(r"(^|[\\/])\.\.([\\/]|$)|^([\\/]|[A-Za-z]:)")
_DRIVES = frozenset({("CLEARMultiGPU", "machines")})
"""Inputs with which a node has machines of its own; all that make a MODEL."""
_FOLDERS = frozenset({"input", "output", "temp", "custom_nodes", "configs"})
"""Names of the host's folders that hold no models."""


def node_classes() -> Mapping[str, Any]:
    """All that this ComfyUI has, by id."""
    host_nodes: Any = sys.modules["nodes"]  # ours has the same name
    return host_nodes.NODE_CLASS_MAPPINGS


def model_graph(dynprompt: Any, node_id: str, name: str) -> tuple[Graph, str, int]:
    """The nodes before an input, and the id and output of the one that it is linked to.

    None of them has machines of its own: the driver's last node decides, and a worker drives nobody. Raises ValueError
    for an input without a link.
    """
    link = dynprompt.get_node(node_id)["inputs"].get(name)
    if not is_link(link):
        raise ValueError(f"{name} is not linked: connect a model")
    graph: Graph = {}
    waiting = [str(link[0])]
    while waiting:
        number = waiting.pop()
        if number not in graph:
            node = dynprompt.get_node(number)
            kind = node["class_type"]
            inputs = {key: "" if (kind, key) in _DRIVES else value for key, value in node["inputs"].items()}
            graph[number] = {"class_type": kind, "inputs": inputs}
            waiting += [str(value[0]) for value in inputs.values() if is_link(value)]
    return graph, str(link[0]), int(link[1])


def guided_model(dynprompt: Any, node_id: str, name: str, classes: Mapping[str, Any]) -> tuple[str, str]:
    """The id of the node that makes the GUIDER which an input is linked to, and the name of its input for the MODEL.

    classes: the host's. Raises ValueError where that node takes none or several.
    """
    link = dynprompt.get_node(node_id)["inputs"].get(name)
    if not is_link(link):
        raise ValueError(f"{name} is not linked: connect a guider")
    number = str(link[0])
    node = dynprompt.get_node(number)
    kind = node["class_type"]
    given = _declared(kind, classes)
    found = [
        key for key, value in node["inputs"].items() if is_link(value) and key in given and given[key][0] == "MODEL"
    ]
    if len(found) != 1:
        raise ValueError(
            f"machines needs a guider that is made from one model, and node {number} ({kind}) takes "
            f"{', '.join(found) or 'none'}: put CLEAR Multi-GPU in front of the guider and set its machines, or leave "
            "machines empty here"
        )
    return number, found[0]


def refusal(graph: Mapping[str, Mapping[str, Any]], classes: Mapping[str, Any]) -> str:
    """Why a worker does not run a graph, in a clause that names the node; "" where it does. classes: the host's."""
    for number, node in graph.items():
        kind, inputs = str(node.get("class_type")), node.get("inputs")
        name = f"node {number} ({kind})"
        if kind not in classes or not isinstance(inputs, Mapping):
            return f"{name} is not installed there: install the pack that brings it, in the same version"
        if getattr(classes[kind], "OUTPUT_NODE", False):
            return f"{name} writes files or shows results, which no worker does: a model must not depend on it"
        for key, value in inputs.items():
            if is_link(value):
                if str(value[0]) not in graph:
                    return f"{name} takes {key} from a node that is not part of the graph"
            elif isinstance(value, str) and _OUTSIDE.search(value):
                return f"{name} reads {value[:80]!r}: a worker reads nothing outside its model folders"
            elif isinstance(value, str) and _is_input_file(kind, key, classes):
                return f"{name} reads the file {value[:80]!r} of the input folder, which other machines do not have"
    return ""


def model_files(graph: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """The model files that a graph names, by their name below a folder of models, / between its parts."""
    values = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    found: dict[str, Path] = {}
    for folder in folder_paths.folder_names_and_paths:
        if folder in _FOLDERS:
            continue
        for value in values.intersection(folder_paths.get_filename_list(folder)):
            path = folder_paths.get_full_path(folder, value)
            if path is not None:
                found[value.replace("\\", "/")] = Path(path)
    return found


def _is_input_file(kind: str, key: str, classes: Mapping[str, Any]) -> bool:
    """Whether a widget chooses a file of the input folder: the host shows an upload button for it."""
    given = _declared(kind, classes).get(key)
    options = given[1] if given is not None and len(given) > 1 and isinstance(given[1], Mapping) else {}
    return any(name.endswith("_upload") for name in options)


def _declared(kind: str, classes: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a node's class: by name their type, and their options where they have some."""
    types = classes[kind].INPUT_TYPES()
    return {**types.get("required", {}), **types.get("optional", {})}
