"""ComfyUI and this pack's nodes in the benchmark's own process."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("CLEAR_HOST", ROOT / ".dev" / "host"))


def import_host() -> None:
    """Put ComfyUI on the path, behind this repository: both have something called `nodes`."""
    if not (HOST / "comfy").is_dir():
        raise SystemExit(f"There is no ComfyUI in {HOST}. Run this as: python dev.py bench")
    if str(HOST) not in sys.path:
        sys.path.append(str(HOST))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def node_class(module: str, name: str) -> Any:
    """A node's class."""
    return getattr(pack_module(f"nodes.{module}"), name)


def pack_module(name: str) -> Any:
    """A module of this pack, such as clear_core.window, loaded as a package of its own. After `import_host`."""
    if "clear_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "clear_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["clear_pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["clear_pack"])
    return importlib.import_module(f"clear_pack.{name}")


def run_node(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """A node's outputs; inputs that are not given are as on a new one."""
    defaults = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
    return node.PREPARE_CLASS_CLONE({}).execute(**{**defaults, **inputs}).args
