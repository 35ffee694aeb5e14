"""An upscale's progress on the page: the node's own bar, and messages "clear_attention.upscale"."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
from comfy_execution.progress import ProgressHandler, ProgressRegistry, get_progress_state

from ..insight.upscale_run import Part, UpscaleRun
from ..options.stages import Stage
from .server import running_server

EVENT = "clear_attention.upscale"
_EVERY = 0.2  # seconds


class UpscaleProgress(ProgressHandler):
    """Follows the nodes of one upscale through ComfyUI's registry of the prompt that runs.

    The page draws the least advanced of a node's parts as its bar, so each part gets the progress of the whole.
    """

    def __init__(self, node: str) -> None:
        super().__init__(_name(node))
        self._node = node
        self._run = UpscaleRun()
        self._sent = 0.0

    def set_registry(self, registry: ProgressRegistry) -> None:
        self._registry = registry

    def add(
        self, stages: Sequence[Stage], nodes: Sequence[Mapping[Part, str]], work: Sequence[Mapping[Part, float]]
    ) -> None:
        """One more image; see `UpscaleRun.add`."""
        self._run.add(stages, nodes, work)

    def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        if self._run.has(node_id):
            self._run.started(node_id)
            self._send()
        self._show(node_id, state)

    def update_handler(
        self, node_id: str, value: float, max_value: float, state: Any, prompt_id: str, image: Any = None
    ) -> None:
        if self._run.has(node_id):
            self._run.stepped(node_id, value, max_value)
            if time.monotonic() - self._sent >= _EVERY or value == max_value:
                self._send()
        self._show(node_id, state)

    def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
        if self._run.has(node_id):
            self._run.finished(node_id)
        own = self._registry.nodes.get(self._node)
        if own is not None and node_id != self._node:
            self._fill(own)

    def _show(self, node_id: str, state: Any) -> None:
        """The bar of the whole, on the node itself and on what it has expanded into."""
        if node_id == self._node or node_id.startswith(f"{self._node}."):
            self._fill(state)
        own = self._registry.nodes.get(self._node)
        if own is not None:
            self._fill(own)

    def _fill(self, state: Any) -> None:
        state["value"], state["max"] = self._run.fraction, 1.0

    def _send(self) -> None:
        state = self._run.state()
        self._sent = time.monotonic()
        if state is not None:
            device = comfy.model_management.get_torch_device()
            free: Any = comfy.model_management.get_free_memory(device)
            total: Any = comfy.model_management.get_total_memory(device)
            send_upscale(self._node, {**state, "free": int(free), "total": int(total)})


def follow_upscale(
    node: str,
    stages: Sequence[Stage],
    nodes: Sequence[Mapping[Part, str]],
    work: Sequence[Mapping[Part, float]],
) -> None:
    """Show the progress of an image's stages on the node that expanded into them; see `UpscaleRun.add`."""
    registry = get_progress_state()
    found = registry.handlers.get(_name(node))
    if not isinstance(found, UpscaleProgress):
        found = UpscaleProgress(node)
        found.set_registry(registry)
        # Before the others, which send what this one fills in.
        others = dict(registry.handlers)
        registry.handlers.clear()
        registry.handlers.update({found.name: found, **others})
    found.add(stages, nodes, work)


def send_upscale(node: str, message: Mapping[str, Any]) -> None:
    """To the page, if there is one."""
    server = running_server()
    if server is not None:
        server.send_sync(EVENT, {**message, "node": node}, server.client_id)


def _name(node: str) -> str:
    return f"{EVENT}.{node}"
