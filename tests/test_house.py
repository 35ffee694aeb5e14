"""Rules that hold for the repository as a whole."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import tomllib

ROOT = Path(__file__).parents[1]
HOST_PACKAGES = {"comfy", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution", "nodes", "utils"}
HEAVY = {"triton", "diffusers", "huggingface_hub", "transformers", "torchmetrics"}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The packages a file imports absolutely; `top_level` leaves out what functions import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def relative_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        "." * node.level + (node.module or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    }


CORE = sorted((ROOT / "clear_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_knows_no_host_and_no_node(path: Path) -> None:
    assert imports(path).isdisjoint(HOST_PACKAGES | {"comfy_api"})
    above = "." * (len(path.relative_to(ROOT).parts) + 0)
    assert not any(name.startswith(above) for name in relative_imports(path)), "an import that leaves clear_core"


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.name)
def test_only_the_host_package_knows_the_hosts_internals(path: Path) -> None:
    if path.parent.name != "host":
        assert imports(path).isdisjoint(HOST_PACKAGES)


@pytest.mark.parametrize("path", [*CORE, *NODES, ROOT / "__init__.py"], ids=lambda path: path.name)
def test_nothing_heavy_is_imported_at_the_top(path: Path) -> None:
    if path.parts[-2:] != ("triton", "kernel.py"):
        assert imports(path, top_level=True).isdisjoint(HEAVY)


def test_the_door_needs_the_standard_library_only() -> None:
    assert imports(ROOT / "dev.py") <= sys.stdlib_module_names
    # -I and -S: no site-packages, no environment, nothing but Python.
    run = subprocess.run([sys.executable, "-I", "-S", str(ROOT / "dev.py"), "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for command in ("run", "test", "bench"):
        assert re.search(rf"^\s+{command}\s", run.stdout, re.MULTILINE)


if os.name != "nt":  # Windows ends a process without telling it: there is nothing to pass on

    def test_ending_the_door_ends_what_it_started() -> None:
        script = "import sys; sys.path.insert(0, sys.argv[1]); import dev; sys.exit(dev.call('-c', sys.argv[2]))"
        child = "import time; print('started', flush=True); time.sleep(600)"
        with subprocess.Popen(
            [sys.executable, "-c", script, str(ROOT), child], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            (started,) = psutil.Process(process.pid).children()
            process.terminate()
            process.wait(timeout=30)
            assert not started.is_running()


def test_requirements_leave_torch_and_numpy_to_the_host() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needs = [line for line in lines if line and not line.startswith("#")]
    names = {re.split(r"[<>=!~\[; ]", line)[0] for line in needs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert needs == project["dependencies"]
    assert names.isdisjoint({"torch", "torchvision", "torchaudio", "numpy", "triton"})
    assert not any("==" in line for line in lines)


def test_the_registry_knows_the_pack() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "clear-attention"
    assert project["tool"]["comfy"]["DisplayName"] == "CLEAR Attention for FLUX"
    assert (ROOT / project["project"]["license"]["file"]).is_file()


def test_every_node_has_a_help_page() -> None:
    nodes = {match for path in NODES for match in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))}
    assert nodes == {
        "CLEARApply",
        "CLEARAttentionMap",
        "CLEARCompare",
        "CLEARControlNet",
        "CLEARHighRes",
        "CLEARItem",
        "CLEARStages",
        "CLEARMultiGPU",
        "CLEARReport",
        "CLEARTiledSampler",
        "CLEARWeightsLoader",
    }
    assert nodes == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
