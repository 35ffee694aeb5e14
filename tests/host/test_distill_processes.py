"""Distillation in processes of its own: two that share a step, one that is killed, and the command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from host.distill_launch import LATE, TORCHRUN, WORKER, finished, started
from host.distill_samples import training_set

STEPS = 30


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process has trained that was killed without warning, after its first save, and started again."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "set").mkdir()
    training_set(folder / "set")
    process = started(WORKER, folder, STEPS, 2, 1)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)][1].startswith("rank 0 Point(step=2,")
    process.kill()
    process.communicate()
    assert not (folder / "mine.safetensors").exists()
    again = finished(WORKER, folder, STEPS, 2, STEPS)
    assert "step=1," not in again
    assert f"step={STEPS}," in again
    return folder


@pytest.mark.parametrize("base", ["replicated", "sharded"])
def test_two_processes_of_which_one_is_killed_end_as_one(one: Path, tmp_path: Path, base: str) -> None:
    """The other one stops, and the same command goes on."""
    shutil.copytree(one / "set", tmp_path / "set")
    command = (*TORCHRUN, WORKER, tmp_path, STEPS, 2, 2, f"base={base}")
    process = started(*command)
    assert process.stdout is not None
    while "step=4," not in (line := process.stdout.readline()):
        assert line, "it ended before its fourth step"
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    children = [int(child) for child in listed.stdout.split()]
    os.kill(children[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(_alive(child) for child in children)
    saved = len(torch.load(tmp_path / "mine.pt", weights_only=True)["history"])
    assert 2 <= saved < STEPS
    out = finished(*command)
    assert f"step={saved + 1}," in out.partition("\n")[0]
    assert out.count("rank 0") == out.count("rank 1") == STEPS - saved
    made = load_file(tmp_path / "mine.safetensors")
    for key, tensor in load_file(one / "mine.safetensors").items():
        torch.testing.assert_close(made[key], tensor, rtol=1e-5, atol=1e-6)


def test_prodigy_finds_the_same_rate_in_two_processes(one: Path, tmp_path: Path) -> None:
    made = []
    for launcher in ((), TORCHRUN):
        folder = tmp_path / str(len(launcher))
        shutil.copytree(one / "set", folder / "set")
        finished(*launcher, WORKER, folder, 6, 2, 6, "optimizer=Prodigy", "rate=1")
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


def test_a_process_ends_well_while_a_tensor_of_a_collective_is_not_freed() -> None:
    assert sorted(finished(*TORCHRUN, LATE).split()) == ["0", "1", "done", "done"]
