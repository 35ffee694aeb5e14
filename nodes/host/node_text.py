"""Text on nodes, and the names of other packs as you find them in custom_nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .server import running_server


def node_text_sender(node_id: str | None) -> Callable[[str], None]:
    """Shows text on the node, where there is a page and a node."""

    def show(text: str) -> None:
        server = running_server()
        if server is not None and node_id is not None:
            # Nodes 2.0 reads it as Markdown, where a line ends with two spaces; the classic renderer does not mind.
            server.send_progress_text(text.replace("\n", "  \n"), node_id)

    return show


class NodeTextParts:
    """One node's text, made of parts that are updated each for itself."""

    def __init__(self, show: Callable[[str], None], count: int) -> None:
        self._show = show
        self._parts = [""] * count

    def part(self, index: int) -> Callable[[str], None]:
        """Shows the text again, with this part in the place of the one before."""

        def update(text: str) -> None:
            self._parts[index] = text
            self._show("\n".join(part for part in self._parts if part))

        return update


def origin_of(function: Any) -> str:
    """The pack or module that a callable comes from, so that you can find and remove it."""
    if function is None:
        return "ComfyUI's own"
    return pack_of(str(getattr(function, "__module__", None) or type(function).__module__))


def pack_of(module: str) -> str:
    """A module's name without the path to custom_nodes: "RES4LYF.flux.model"."""
    return module.replace("\\", "/").split("custom_nodes/")[-1].replace("/", ".")
