"""What a node's input is made of: the nodes before it with their values, the same text in every run and session."""

from __future__ import annotations

import json
from typing import Any

from comfy_execution.graph_utils import is_link


def upstream(dynprompt: Any, node_id: str | None, name: str) -> str:
    """The class and the inputs of every node before an input, as JSON; "" where there is no graph or no link.

    Ids of nodes are left out: they differ between copies of a workflow. Files are known by name only.
    """
    if dynprompt is None or node_id is None:
        return ""
    link = dynprompt.get_node(node_id)["inputs"].get(name)
    if not is_link(link):
        return ""
    numbers = {link[0]: 0}
    waiting, described = [link[0]], list[Any]()
    while waiting:
        node = dynprompt.get_node(waiting.pop(0))
        inputs: dict[str, Any] = {}
        for key, value in sorted(node["inputs"].items()):
            if is_link(value) and value[0] not in numbers:
                numbers[value[0]] = len(numbers)
                waiting.append(value[0])
            inputs[key] = {"node": numbers[value[0]], "output": value[1]} if is_link(value) else value
        described.append([node["class_type"], inputs])
    return json.dumps([link[1], described], sort_keys=True)
