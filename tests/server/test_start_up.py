"""What the pack costs at the host's start: users count the seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.server import HOST, PACK_FOLDER, ComfyServer

LIMIT = 0.5  # seconds
HEAVY = ("diffusers", "triton", "huggingface_hub")

# Everything the host itself imports comes first; what is new afterwards is the pack's doing.
_MEASURE = """
import asyncio, json, sys, time
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, utils.install_util
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before = set(sys.modules)
started = time.perf_counter()
assert asyncio.run(nodes.load_custom_node(sys.argv[1]))
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "new": sorted(set(sys.modules) - before)}))
"""


def test_server_reports_a_quick_import(server: ComfyServer) -> None:
    line = re.search(rf"([\d.]+) seconds(.*): .*{PACK_FOLDER}", server.log)
    assert line is not None, server.log
    assert line[2] == "", "the import failed"
    assert float(line[1]) < LIMIT


@pytest.fixture(scope="module")
def imported(pack_folder: Path) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(pack_folder)],
        cwd=HOST,
        env={**os.environ, "PYTHONPATH": str(HOST)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_nothing_heavy_is_imported(imported: dict[str, list[str]]) -> None:
    packages = {name.partition(".")[0] for name in imported["new"]}
    assert any("clear_core" in name for name in imported["new"]), "the measurement missed the pack"
    assert packages.isdisjoint(HEAVY)


def test_import_is_quick(imported: dict[str, float]) -> None:
    assert imported["seconds"] < LIMIT
