"""Distillation in processes of its own: two that share a step, one that is killed, and the command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from devtools.inprocess import HOST, ROOT

from host.distill_samples import training_set

ENVIRONMENT = {**os.environ, "CLEAR_HOST": str(HOST), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
WORKER = [str(ROOT / "tests" / "host" / "distill_worker.py")]
STEPS = 30
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(*arguments: object) -> str:
    process = started(*arguments)
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained. One was killed in between, and the same command has gone on."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "set").mkdir()
    training_set(folder / "set")
    process = started(*TORCHRUN, *WORKER, folder, STEPS, 2, 2)
    assert process.stdout is not None
    while "step=4," not in (line := process.stdout.readline()):
        assert line, "it ended before its fourth step"
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    children = [int(child) for child in listed.stdout.split()]
    os.kill(children[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(_alive(child) for child in children)
    saved = len(torch.load(folder / "mine.pt", weights_only=True)["history"])
    assert 2 <= saved < STEPS
    out = finished(*TORCHRUN, *WORKER, folder, STEPS, 2, 2)
    assert f"step={saved + 1}," in out.partition("\n")[0]
    assert out.count("rank 0") == out.count("rank 1") == STEPS - saved
    return folder


def test_two_processes_are_one_that_was_killed_too(two: Path, tmp_path: Path) -> None:
    """Without warning, after its first save, and started again."""
    shutil.copytree(two / "set", tmp_path / "set")
    process = started(*WORKER, tmp_path, STEPS, 2, 1)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)][1].startswith("rank 0 Point(step=2,")
    process.kill()
    process.communicate()
    assert not (tmp_path / "mine.safetensors").exists()
    again = finished(*WORKER, tmp_path, STEPS, 2, STEPS)
    assert "step=1," not in again
    assert f"step={STEPS}," in again
    one, other = load_file(tmp_path / "mine.safetensors"), load_file(two / "mine.safetensors")
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-5, atol=1e-6)


def test_prodigy_finds_the_same_rate_in_two_processes(two: Path, tmp_path: Path) -> None:
    made = []
    for launcher in ([], TORCHRUN):
        folder = tmp_path / str(len(launcher))
        shutil.copytree(two / "set", folder / "set")
        finished(*launcher, *WORKER, folder, 6, 2, 6, "Prodigy", 1)
        made.append(load_file(folder / "mine.safetensors"))
    for key, tensor in made[0].items():
        torch.testing.assert_close(made[1][key], tensor, rtol=1e-4, atol=1e-5)


def _alive(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True
