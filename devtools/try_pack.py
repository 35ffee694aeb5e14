"""`python dev.py pack DIR`: another pack's nodes beside CLEAR, each order with its error or the reason it gives.

The pack is loaded as ComfyUI's server does, so its own code runs. Without DIR, ComfyUI's own nodes are tried.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python dev.py pack", allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--node")
    parser.add_argument("--inputs", type=json.loads, default={})
    options = parser.parse_args(arguments)
    folder: Path | None = options.folder
    if folder is not None and not (folder / "__init__.py").is_file():
        parser.error(f"{folder} is not a node pack: it has no __init__.py. Name the pack's own folder.")

    nodes, said = _load(folder)
    from .pack_trial import Trial
    from .packs import OWN, TRIALS

    name = "ComfyUI's own nodes" if folder is None else f"{folder.name} {_revision(folder)}"
    trials = OWN if folder is None else TRIALS.get(folder.name, ())
    if options.node is not None:
        trials = (Trial(options.node, options.inputs),)
    print(f"\n{name} on ComfyUI {_host_version()}: loads beside CLEAR")
    if not trials:
        print("No node of it is listed in devtools/packs.py; name one with --node.")
    for trial in trials:
        if trial.node in nodes:
            _report(nodes, trial, said)
        else:
            print(f"  {trial.node}: not among the nodes that were loaded")
    return 0


def _report(nodes: dict[str, Any], trial: Any, said: dict[str, list[str]]) -> None:
    from .pack_trial import try_node

    print(f"  {trial.node} {json.dumps(dict(trial.inputs)) if trial.inputs else ''}")
    try:
        for outcome in try_node(nodes, trial):
            print(f"    {outcome}")
            for node in ("CLEARApply", "CLEARMultiGPU"):
                for text in said.pop(node, [])[-1:]:
                    print(f"      {node}: " + text.replace("  \n", "\n").replace("\n", " | "))
            said.clear()
    except Exception as error:
        print(f"    without CLEAR it fails too: {type(error).__name__}: {error}")


def _load(folder: Path | None) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The host's nodes with CLEAR's and the pack's, and what nodes show while they run, by node."""
    import torch
    from comfy.cli_args import args

    args.cpu = True
    if not torch.cuda.is_available():
        # Some packs move a matrix to the GPU and back, whatever device the model is on.
        torch.Tensor.cuda = lambda self, *_, **__: self
    # Before `nodes`, which puts `comfy/`, with a `utils.py` of its own, first on the path.
    import utils.extra_config
    import utils.install_util  # noqa: F401

    import nodes  # isort: skip
    import server

    said: dict[str, list[str]] = defaultdict(list)
    # Packs add routes to the server while they are loaded. It does not run, so the page's texts are kept here.
    prompt_server: Any = server.PromptServer(asyncio.new_event_loop())
    prompt_server.send_progress_text = lambda text, node_id, sid=None: said[node_id].append(text)
    host: Any = nodes
    if folder is None:
        asyncio.run(host.init_builtin_extra_nodes())
    for pack in (ROOT,) if folder is None else (ROOT, folder):
        if not asyncio.run(host.load_custom_node(str(pack))):
            raise SystemExit(f"ComfyUI could not load {pack}; its log above says why.")
    return host.NODE_CLASS_MAPPINGS, said


def _revision(folder: Path) -> str:
    """The commit of a checkout, or the version that the pack gives itself."""
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode == 0:
            return run.stdout.strip()
    about = folder / "pyproject.toml"
    found = re.search(r'^version\s*=\s*"([^"]+)"', about.read_text(encoding="utf-8"), re.M) if about.is_file() else None
    return found[1] if found else "(no version)"


def _host_version() -> str:
    from .layers import version

    return version(Path(os.environ["CLEAR_HOST"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
