"""What the tests of the nodes share."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class TextsOnNodes(defaultdict[str, list[str]]):
    """The texts that each node has shown, by the node's class, in the part of ComfyUI's server that shows them.

    events: what else the page was sent, by name.
    """

    client_id = "the page"

    def __init__(self) -> None:
        super().__init__(list)
        self.events: list[tuple[str, dict[str, Any]]] = []

    def send_sync(self, event: str, data: dict[str, Any], sid: str | None = None) -> None:
        assert sid == self.client_id
        self.events.append((event, data))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        # As the page shows it: a line of Markdown ends with two spaces.
        self[node_id].append(text.replace("  \n", "\n"))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> TextsOnNodes:
    """What nodes show while they run: as in ComfyUI, through the server that it has started."""
    texts = TextsOnNodes()
    server = ModuleType("server")
    server.PromptServer = SimpleNamespace(instance=texts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server", server)
    return texts


@pytest.fixture
def in_bands(nodes_api: Any) -> Callable[..., Any]:
    """A MODEL through CLEAR Multi-GPU."""

    def apply(model: Any, bands: int = 3, devices: str = "cpu", text_merge: str = "exact") -> Any:
        return nodes_api.execute("CLEARMultiGPU", model=model, devices=devices, bands=bands, text_merge=text_merge)[0]

    return apply


@pytest.fixture
def casts(host: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """How often the host prepares each layer's weights."""
    import comfy.ops

    counts: Counter[Any] = Counter()
    real = comfy.ops.cast_bias_weight

    def counted(layer: Any, *args: Any, **kwargs: Any) -> Any:
        counts[layer] += 1
        return real(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
    return counts


@pytest.fixture
def previews_elsewhere(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes write their previews into a folder of the test."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
