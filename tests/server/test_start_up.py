"""What the pack imports at the host's start. How long it takes is a figure of the benchmarks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from devtools.server import HOST, PACK_FOLDER, ComfyServer

HEAVY = ("diffusers", "triton", "huggingface_hub", "matplotlib", "torchmetrics")

# Everything the host itself imports comes first; what is new afterwards is the pack's doing.
_MEASURE = """
import asyncio, json, sys
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, utils.install_util
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before = set(sys.modules)
assert asyncio.run(nodes.load_custom_node(sys.argv[1]))
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_server_imports_it(server: ComfyServer) -> None:
    line = re.search(rf"[\d.]+ seconds(.*): .*{PACK_FOLDER}", server.log)
    assert line is not None, server.log
    assert line[1] == "", "the import failed"


def test_nothing_heavy_is_imported(pack_folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(pack_folder)],
        cwd=HOST,
        env={**os.environ, "PYTHONPATH": str(HOST)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    new = json.loads(result.stdout.splitlines()[-1])
    assert any("clear_core" in name for name in new), "the check missed the pack"
    assert {name.partition(".")[0] for name in new}.isdisjoint(HEAVY)
