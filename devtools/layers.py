"""Another ComfyUI beside the bundled one: a check of its tree, and its packages in a layer of their own.

A layer is a virtual environment below .dev/hosts that holds only what the shared environment lacks or has in another
version. It finds everything else, PyTorch too, in the shared one, which is never changed. Hosts with the same
requirements share a layer.

Standard library only: dev.py imports this before there is an environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .steps import DEV, LOG, DevError, run_step

LAYERS = DEV / "hosts"
# What a checkout of ComfyUI has, and what the tests and the server need of it.
_PARTS = ("main.py", "nodes.py", "comfyui_version.py", "requirements.txt", "comfy")
# PyTorch stays that of the shared environment: the same on all hosts, and the one that fits this machine.
_SHARED = ("torch", "torchvision", "torchaudio")
# Half a gigabyte of sample workflows and help pages for ComfyUI's own nodes, which only the page shows.
_LEFT_OUT = ("comfyui-workflow-templates", "comfyui-embedded-docs")


def check_tree(host: Path) -> None:
    """Raises DevError unless `host`, which CLEAR_HOST names, is a ComfyUI checkout."""
    if missing := [part for part in _PARTS if not (host / part).exists()]:
        raise DevError(
            f"CLEAR_HOST names {host}, which is not a ComfyUI checkout: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Set it to the folder that holds ComfyUI's main.py, "
            "or unset it for the bundled version."
        )


def version(host: Path) -> str:
    """The version that a ComfyUI tree gives itself, such as "0.33.0"."""
    text = (host / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', text)
    return found[1] if found else "of an unknown version"


def requirements(tree: Path, without: Iterable[str] = ()) -> list[str]:
    """The lines of requirements.txt in a ComfyUI tree or a node pack, without PyTorch and the packages named."""
    names, listed = {*_SHARED, *without}, tree / "requirements.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    return [line for line in lines if re.split(r"[\s<>=!~\[;#]", line.strip())[0].lower() not in names]


def layer_python(host: Path, shared: Path, *, fingerprint: str, extras: Iterable[str]) -> Path:
    """The interpreter that has `host`'s packages on top of the environment of the interpreter `shared`.

    fingerprint: of the shared environment; when that changes, the layer is made again.
    extras: what hosts import beyond their lists.

    Made at most once. Raises DevError.
    """
    needs = "\n".join([*requirements(host, _LEFT_OUT), *extras]) + "\n"
    layer = LAYERS / hashlib.sha256(f"{fingerprint}\n{needs}".encode()).hexdigest()[:12]
    python = layer / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = layer / "finished.txt"  # absent where making it was interrupted
    if finished.is_file() and python.exists():
        return python
    LAYERS.mkdir(parents=True, exist_ok=True)
    LOG.touch()
    print(f"Making {layer} for ComfyUI {version(host)} (once; the log is {LOG})")
    run_step(
        "Making an environment on top of the shared one", [shared, "-m", "venv", "--clear", "--without-pip", layer]
    )
    # Behind the layer's own packages on the path, with the shared environment's own .pth files.
    below = f"import site; site.addsitedir({str(_site_packages(shared))!r})\n"
    (_site_packages(python) / "shared.pth").write_text(below, encoding="utf-8")
    listed, constraints = layer / "requirements.txt", layer / "constraints.txt"
    listed.write_text(needs, encoding="utf-8")
    constraints.write_text("".join(f"{line}\n" for line in _installed(shared, _SHARED)), encoding="utf-8")
    # pip, not uv, which does not see packages below. pip leaves alone what is outside the environment it runs in.
    install = [python, "-m", "pip", "install", "-r", listed, "-c", constraints]
    run_step(f"Installing what ComfyUI {version(host)} needs", install)
    finished.touch()
    return python


def _site_packages(python: Path) -> Path:
    return Path(_output(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))


def _installed(python: Path, names: Iterable[str]) -> list[str]:
    """The packages of these that are installed, as requirements of exactly these versions."""
    script = "import importlib.metadata as m, sys; print(*(f'{n}=={m.version(n)}' for n in sys.argv[1:]), sep='\\n')"
    return _output(python, script, *names).splitlines()


def _output(python: Path, script: str, *arguments: str) -> str:
    command = [str(python), "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
