"""The real host in the test's own process, and the core as a package of its own.

The repository's root must not come before the host on the path: its `nodes/` would hide the host's
`nodes.py`. So the host goes first, and `clear_core` is registered by its file instead of by the path.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
HOST = Path(os.environ.get("CLEAR_HOST", ROOT / ".dev" / "host"))

if not (HOST / "comfy").is_dir():
    raise pytest.UsageError(f"There is no ComfyUI host in {HOST}. Run the tests with: python dev.py test")

sys.path[:0] = [str(HOST), str(ROOT / "tests")]
sys.path.append(str(ROOT))  # for devtools; last, or `nodes/` would hide the host's `nodes.py`

from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()

# Test processes side by side share the cores, and so do the servers that they start.
if (_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    _threads = max(1, (os.cpu_count() or 1) // _processes)
    torch.set_num_threads(_threads)
    os.environ["OMP_NUM_THREADS"] = str(_threads)

_spec = importlib.util.spec_from_file_location("clear_core", ROOT / "clear_core" / "__init__.py")
assert _spec is not None and _spec.loader is not None
sys.modules["clear_core"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["clear_core"])

# Triton exists for Linux only; elsewhere there is nothing that its tests could run.
collect_ignore = [] if importlib.util.find_spec("triton") else ["core/test_triton.py"]

# Slow machines are no failures; examples are the same in every run.
settings.register_profile(
    "clear", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("clear")


@pytest.fixture(scope="session")
def host() -> Any:
    """The host's `nodes` module, imported as its server does."""
    import utils.extra_config
    import utils.install_util  # noqa: F401 - before `nodes`, which puts a `utils.py` of its own on the path

    import nodes

    assert Path(str(nodes.__file__)).parent == HOST, f"this repository hides the host's `nodes`: {sys.path[:3]}"
    return nodes


@pytest.fixture(scope="session")
def pack(host: Any) -> dict[str, Any]:
    """This pack's node classes by id, loaded as the server loads them."""
    loaded = asyncio.run(host.load_custom_node(str(ROOT)))
    assert loaded, "the host could not load the pack; its log says why"
    return host.NODE_CLASS_MAPPINGS


class NodesApi:
    """The nodes as plain functions: their defaults, their errors, their outputs.

    A node's id is the name of its class.
    """

    def __init__(self, classes: dict[str, Any]) -> None:
        self._classes = classes
        self._apply, self._loader = classes["CLEARApply"], classes["CLEARWeightsLoader"]

    def defaults(self) -> dict[str, Any]:
        """The values of Apply CLEAR Attention's widgets on a new node."""
        return {i.id: i.default for i in self._apply.define_schema().inputs if hasattr(i, "default")}

    def apply(self, model: Any, weights: Any = None, **inputs: Any) -> Any:
        return self.apply_output(model, weights, **inputs).args[0]

    def apply_output(self, model: Any, weights: Any = None, **inputs: Any) -> Any:
        return self._clone("CLEARApply").execute(model=model, weights=weights, **{**self.defaults(), **inputs})

    def execute(self, node: str, **inputs: Any) -> tuple[Any, ...]:
        """Run a node; its outputs."""
        return self._clone(node).execute(**inputs).args

    def _clone(self, node: str) -> Any:
        """The class as the host prepares it for one execution."""
        from comfy_api.latest import io

        hidden = {io.Hidden.unique_id: node}
        # 0.3.75 takes these; newer hosts look for them under a name.
        return self._classes[node].PREPARE_CLASS_CLONE({**hidden, "hidden_inputs": hidden})

    def module(self, name: str) -> Any:
        """A module of the pack as the host loaded it, such as "clear_core.weights"."""
        return importlib.import_module(f"{self._apply.__module__.rsplit('.', 2)[0]}.{name}")

    def weights(self, path: Path) -> Any:
        return self.module("clear_core.weights").read_weights(path)


@pytest.fixture(scope="session")
def nodes_api(pack: dict[str, Any]) -> NodesApi:
    return NodesApi(pack)
