"""The list of what the pack needs of ComfyUI is whole, and a ComfyUI that lacks a piece is told so in one sentence."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib

from devtools.server import BASE, HOST, PACK_FOLDER

ROOT = Path(__file__).parents[2]
HOST_PACKAGES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths"}


@pytest.fixture(scope="module")
def compat(nodes_api: Any) -> Any:
    return nodes_api.module("nodes.compat")


def used(path: Path) -> set[str]:
    """The dotted names of ComfyUI that a file imports, and what it takes from them: "comfy.utils.ProgressBar"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {name: name for name in (alias.name.partition(".")[0] for alias in node.names)}
            assert not any(alias.asname for alias in node.names if alias.name.partition(".")[0] in HOST_PACKAGES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    known = {name: full for name, full in known.items() if full.partition(".")[0] in HOST_PACKAGES}
    found |= {full for full in known.values() if "." in full}

    class Chains(ast.NodeVisitor):
        def visit_Attribute(self, node: ast.Attribute) -> None:
            parts, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                parts.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id in known:
                found.add(".".join([known[value.id], *reversed(parts)]))
            else:
                self.generic_visit(node)

    Chains().visit(tree)
    return found


def test_the_list_is_what_the_pack_uses(compat: Any) -> None:
    uses = {name for path in (ROOT / "nodes").rglob("*.py") for name in used(path)}
    listed = {f"{module}.{name}" for module, names in compat.NEEDED.items() for name in names.split()}
    listed |= set(compat.ON_USE)

    def of(one: str, other: str) -> bool:
        return one == other or one.startswith(f"{other}.")

    # A use is of a listed name, or names the way to one: `WrappersMP` alone, or the module as it is.
    unlisted = {use for use in uses if not any(of(use, name) or of(name, use) for name in listed)}
    unused = {name for name in listed if not any(of(use, name) for use in uses)}
    assert not unlisted
    assert not unused


def test_this_host_has_everything(compat: Any) -> None:
    compat.check()


# ---- stand-ins for what is missing -----------------------------------------------------------------------

# Each takes something away from the host, in a process of its own, before the pack is loaded.
_LOAD = """
import asyncio, importlib, json, logging, sys
import aiohttp
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, utils.install_util
import nodes

class Lines(logging.Handler):
    def emit(self, record):
        lines.append((record.levelname, record.getMessage()))

lines = []
logging.getLogger().addHandler(Lines())

def owner_of(name):
    owner, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(owner), attribute
    except ImportError:
        above, middle = owner_of(owner)
        return getattr(above, middle), attribute

out = {}
for name, value in json.loads(sys.argv[2]).items():
    owner, attribute = (sys.modules, name) if name in sys.modules else owner_of(name)
    take, put = (dict.pop, dict.__setitem__) if owner is sys.modules else (delattr, setattr)
    had = owner[attribute] if owner is sys.modules else getattr(owner, attribute)
    take(owner, attribute) if value == "gone" else put(owner, attribute, eval(value))
    lines.clear()
    before = set(nodes.NODE_CLASS_MAPPINGS)
    loaded = asyncio.run(nodes.load_custom_node(sys.argv[1]))
    put(owner, attribute, had)
    out[name] = [loaded, sorted(set(nodes.NODE_CLASS_MAPPINGS) - before), list(lines)]
    for module in [module for module in sys.modules if "clear-attention" in module]:
        del sys.modules[module]
loaded = asyncio.run(nodes.load_custom_node(sys.argv[1]))
out["nothing"] = [loaded, sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("CLEAR")), []]
print(json.dumps(out))
"""

# Name -> what stands in its place ("gone": nothing), and the words for it.
STAND_INS = {
    "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE": ("gone", "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE."),
    "comfy.patcher_extension.WrapperExecutor": ("gone", "comfy.patcher_extension.WrapperExecutor.new_class_executor."),
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key": ("gone", "ModelPatcher.add_wrapper_with_key."),
    "comfy.model_management.throw_exception_if_processing_interrupted": ("gone", "processing_interrupted."),
    "comfy.ldm.flux.model.Flux._forward": (
        "lambda self, img, timesteps, context, y, guidance, control, transformer_options: None",
        "comfy.ldm.flux.model.Flux._forward(x, timestep, ref_latents).",
    ),
    "comfy.ldm.flux.layers.SingleStreamBlock.forward": (
        "lambda self, x, vec, pe, attn_mask=None: None",
        "comfy.ldm.flux.layers.SingleStreamBlock.forward(transformer_options).",
    ),
    "comfy.ldm.modules.attention.wrap_attn": (
        "lambda func: func",
        "an attention that calls optimized_attention_override",
    ),
    "folder_paths.get_full_path": ("gone", "folder_paths.get_full_path."),
    "comfy_api.latest.io.UpscaleModel": ("gone", "comfy_api.latest.io.UpscaleModel."),
    "comfy_api.latest": ("None", "lacks comfy_api.latest. It needs"),
    "comfy.ldm.chroma.model": ("None", "lacks comfy.ldm.chroma.model. It needs"),
    "comfy.utils": ("__import__('types').ModuleType('comfy.utils')", "comfy.utils.set_attr. It needs"),
    "aiohttp": (
        "None",
        "ModuleNotFoundError: import of aiohttp halted; None in sys.modules. Where a",
    ),
}
"""Which of these the pack itself looks for and which only fail to be imported makes no difference to the user."""


@pytest.fixture(scope="module")
def crippled() -> dict[str, Any]:
    """What each stand-in made of loading the pack."""
    link = BASE / "custom_nodes" / PACK_FOLDER
    given = json.dumps({name: value for name, (value, _) in STAND_INS.items()})
    result = subprocess.run(
        [sys.executable, "-c", _LOAD, str(link), given],
        cwd=HOST,
        env={**os.environ, "PYTHONPATH": str(HOST)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", STAND_INS)
def test_a_missing_piece_is_one_sentence(crippled: dict[str, Any], name: str) -> None:
    loaded, nodes, lines = crippled[name]
    assert loaded, "the host was to go on as if the pack were loaded"
    assert nodes == []
    ((level, said),) = [line for line in lines if line[0] != "DEBUG"]
    assert level == "ERROR"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert said.startswith(f"CLEAR Attention {version} adds no nodes to this ComfyUI (")
    assert STAND_INS[name][1] in said
    assert "\n" not in said and said.endswith(".")


def test_what_is_there_again_is_found_again(crippled: dict[str, Any]) -> None:
    loaded, nodes, _ = crippled["nothing"]
    assert loaded
    assert {"CLEARApply", "CLEARWeightsLoader"} <= set(nodes)


def test_many_missing_pieces_are_counted(compat: Any) -> None:
    said = compat.explained(compat.MissingHooks(*(f"comfy.piece_{i}" for i in range(9))))
    assert "lacks comfy.piece_0, comfy.piece_1, comfy.piece_2 and 6 more. It needs ComfyUI 0.3.75 or newer" in said


# The host's own main.py, with something missing that the pack needs and nothing else calls while starting.
_START = """
import runpy, sys
sys.path[0] = ""
sys.argv = ["main.py", *sys.argv[1:]]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.patcher_extension
del comfy.patcher_extension.WrappersMP.APPLY_MODEL
runpy.run_path("main.py", run_name="__main__")
"""


def test_comfyui_starts_normally_without_the_nodes(tmp_path: Path) -> None:
    options = ["--cpu", "--quick-test-for-ci", "--base-directory", str(BASE), "--disable-api-nodes"]
    options += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_FOLDER]
    options += ["--database-url", "sqlite:///:memory:"]
    for name in ("output", "temp", "user"):
        (tmp_path / name).mkdir()
        options += [f"--{name}-directory", str(tmp_path / name)]
    run = subprocess.run(
        [sys.executable, "-c", _START, *options],
        cwd=HOST,
        env={key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    lines = [line for line in run.stdout.splitlines() if "CLEAR Attention" in line]
    assert len(lines) == 1
    assert "which lacks comfy.patcher_extension.WrappersMP.APPLY_MODEL. It needs ComfyUI 0.3.75 or newer" in lines[0]
    assert "Traceback" not in run.stdout
    assert "IMPORT FAILED" not in run.stdout
    assert "Import times for custom nodes" in run.stdout
