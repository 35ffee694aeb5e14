"""Stand-ins for node packs: each does to the host's FLUX what the pack of its name does, in a module named alike."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def load(file: str, name: str) -> ModuleType:
    """A module of this folder under the name that ComfyUI gives a pack's module, such as "RES4LYF.flux.model"."""
    spec = importlib.util.spec_from_file_location(
        f"/ComfyUI/custom_nodes/{name}", Path(__file__).with_name(f"{file}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
