"""What holds for the repository, and what its linters cannot say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path

import psutil
import tomllib

from clear_core.show.measured import file_name

ROOT = Path(__file__).parents[1]

IMPORT_CORE = """
import importlib, pkgutil, sys
import clear_core

for module in pkgutil.walk_packages(clear_core.__path__, "clear_core."):
    if module.name.rpartition(".")[2] not in ("kernel", "hopper_kernel", "__main__"):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_the_core_loads_nothing_heavy() -> None:
    """Ruff sees an import at the top of our files; this sees what any import brings with it."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_CORE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert {"clear_core", "torch"} <= loaded
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    heavy = ruff["flake8-tidy-imports"]["banned-module-level-imports"]
    assert heavy and loaded.isdisjoint([*heavy, "comfy", "comfy_api"])


def test_dev_needs_only_the_standard_library() -> None:
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(ROOT / "dev.py"))
    imported = {name.partition(".")[0] for name in (*finder.modules, *finder.badmodules)}
    assert imported - sys.stdlib_module_names == {"__main__", "devtools"}
    # -I and -S: no site-packages, no environment, nothing but Python.
    run = subprocess.run([sys.executable, "-I", "-S", str(ROOT / "dev.py"), "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for command in ("run", "test", "bench"):
        assert re.search(rf"^\s+{command}\s", run.stdout, re.MULTILINE)


if os.name != "nt":  # Windows ends a process without telling it: there is nothing to pass on

    def test_ending_dev_ends_what_it_started() -> None:
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


def test_of_the_benchmarks_the_registry_gets_the_measured_cards(tmp_path: Path) -> None:
    def git(*arguments: str) -> list[str]:
        run = subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return run.stdout.split()

    git("init", "--quiet")
    (tmp_path / ".git" / "info" / "exclude").write_bytes((ROOT / ".comfyignore").read_bytes())
    kept = [f"benchmarks/results/{file_name('A card')}", "clear_core/show/measured.py"]
    for name in ("benchmarks/timing.py", "benchmarks/card/page.py", "benchmarks/results/memory.json", *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(git("ls-files", "--others", "--exclude-standard")) == kept


def test_every_node_has_a_help_page() -> None:
    sources = (ROOT / "nodes").rglob("*.py")
    nodes = {match for path in sources for match in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))}
    assert nodes == {
        "CLEARApply",
        "CLEARAttentionMap",
        "CLEARBatch",
        "CLEARCompare",
        "CLEARControlNet",
        "CLEARFactors",
        "CLEARHighRes",
        "CLEARItem",
        "CLEARLoadLarge",
        "CLEARStageDecode",
        "CLEARStageEncode",
        "CLEARStages",
        "CLEARMultiGPU",
        "CLEARPreset",
        "CLEARReport",
        "CLEARSaveLarge",
        "CLEARSweep",
        "CLEARTiledSampler",
        "CLEARTrainingSet",
        "CLEARDistill",
        "CLEAREvaluate",
        "CLEARVAEDecode",
        "CLEARVAEEncode",
        "CLEARWeightsLoader",
    }
    assert nodes == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
