"""Folders, nodes, bands and progress that the tests of both nodes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from host.large_images.images import PNGINFO, PROMPT


@pytest.fixture
def folder(host: Any, tmp_path: Path) -> Iterator[Path]:
    """The output folder, which is the input folder too."""
    import folder_paths

    before = folder_paths.get_output_directory(), folder_paths.get_input_directory(), folder_paths.get_temp_directory()
    output = tmp_path / "images"
    output.mkdir()
    folder_paths.set_output_directory(str(output))
    folder_paths.set_input_directory(str(output))
    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    yield output
    folder_paths.set_output_directory(before[0])
    folder_paths.set_input_directory(before[1])
    folder_paths.set_temp_directory(before[2])


@pytest.fixture
def save(pack: dict[str, Any], folder: Path) -> Callable[..., Any]:
    """Save Large Image: what it tells the page."""
    from comfy_api.latest import io

    def run(images: Tensor, kind: str = "png", prefix: str = "CLEAR", prompt: Any = PROMPT, pnginfo: Any = None) -> Any:
        hidden = {io.Hidden.prompt: prompt, io.Hidden.extra_pnginfo: PNGINFO if pnginfo is None else pnginfo}
        node = pack["CLEARSaveLarge"].PREPARE_CLASS_CLONE({**hidden, "hidden_inputs": hidden})
        return node.execute(images=images, filename_prefix=prefix, format=kind).ui

    return run


@pytest.fixture
def load(nodes_api: Any, folder: Path) -> Callable[..., Any]:
    """Load Large Image: IMAGE, MASK."""

    def run(image: str, left: int = 0, top: int = 0, width: int = 0, height: int = 0) -> Any:
        return nodes_api.execute("CLEARLoadLarge", image=image, left=left, top=top, width=width, height=height)

    return run


@pytest.fixture
def small_bands(nodes_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of a few rows, so that small images have several."""
    for name in ("save", "read", "tiff_rows"):
        monkeypatch.setattr(nodes_api.module(f"nodes.host.large_images.{name}"), "BAND", 150)


@pytest.fixture
def progress(host: Any) -> Iterator[Any]:
    """What the host's bar is told; from `stop_at` on it is as if Cancel had been pressed."""
    import comfy.model_management
    import comfy.utils

    class Told:
        def __init__(self) -> None:
            self.values: list[tuple[int, int]] = []
            self.stop_at: int | None = None

        def __call__(self, value: int, total: int, preview: Any, node_id: Any = None) -> None:
            self.values.append((value, total))
            if value == self.stop_at:
                comfy.model_management.interrupt_current_processing(True)

    told, before = Told(), comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(told)
    yield told
    comfy.utils.set_progress_bar_global_hook(before)
    comfy.model_management.interrupt_current_processing(False)
