"""Distillation's step on ComfyUI's own FLUX: what the authors' script computed, recorded, is computed again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clear_core.distill.output import file_metadata, save_weights
from clear_core.distill.weights import as_leaves
from devtools.inprocess import HOST, ROOT
from devtools.models import Golden, sinusoids

FILES = sorted((ROOT / "tests" / "data" / "distill").glob("*.safetensors"))
_INPUTS = {"x0", "noise", "u", "idx", "timesteps", "sigmas", "t", "guidance", "x", "context", "y", "img_ids", "txt_ids"}


def distill(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python dev.py distill`, without its set-up."""
    return subprocess.run(
        [sys.executable, "-m", "devtools.distill_replay", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "CLEAR_HOST": str(HOST)},
        capture_output=True,
        text=True,
        check=False,
    )


def far(got: list[Tensor], expected: list[Tensor]) -> float:
    """The relative distance of all values together."""
    a, b = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (got, expected))
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], ...]:
    """What was computed from a recording's inputs alone, and the recording."""
    folder = tmp_path_factory.mktemp("replay")
    golden = Golden.read(request.param)
    recorded = golden.tensors
    given = {
        k: v for k, v in recorded.items() if k in _INPUTS | {"timestep_freqs"} or k.startswith(("base.", "clear."))
    }
    save_file(given, folder / "inputs.safetensors", metadata=golden.metadata)
    done = distill("--replay", folder / "inputs.safetensors", "--out", folder / "out.safetensors")
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors"), {k: v for k, v in recorded.items() if k not in given}


def test_all_that_the_step_computes_is_there(step: tuple[dict[str, Tensor], ...]) -> None:
    made, recorded = step
    assert {name: tensor.shape for name, tensor in made.items()} == {name: t.shape for name, t in recorded.items()}


def test_outputs_and_losses_are_the_authors(step: tuple[dict[str, Tensor], ...]) -> None:
    made, recorded = step
    outputs = [name for name in recorded if name.endswith("out") or name.startswith(("teacher.attn", "start.attn"))]
    assert len(outputs) == 8
    assert max(far([made[name]], [recorded[name]]) for name in outputs) < 3e-6
    scalars = [name for name in recorded if "loss" in name or "grad_norm" in name]
    assert len(scalars) == 2 * 8
    assert max(far([made[name]], [recorded[name]]) for name in scalars) < 1e-5


@pytest.mark.parametrize("point", ["start", "pert"])
def test_gradients_are_the_authors(step: tuple[dict[str, Tensor], ...], point: str) -> None:
    made, recorded = step
    names = [name for name in recorded if name.startswith(f"{point}.grad.")]
    assert far([made[name] for name in names], [recorded[name] for name in names]) < 1e-5
    assert max(far([made[name]], [recorded[name]]) for name in names) < 1e-4


def test_three_steps_move_the_weights_as_the_authors(
    step: tuple[dict[str, Tensor], ...], request: pytest.FixtureRequest
) -> None:
    made, recorded = step
    base = load_file(next(path for path in FILES if path.stem in request.node.name))
    names = [name for name in recorded if name.startswith("start.after3.")]

    def updates(of: dict[str, Tensor]) -> list[Tensor]:
        found = []
        for name in names:
            key = name.removeprefix("start.after3.")
            pooling = torch.full_like(of[name], 1 / of[name].numel())
            found.append(of[name] - (pooling if key.endswith("spatial_weight") else base[f"base.{key}"].float()))
        return found

    got, expected = updates(made), updates(recorded)
    assert far(got, expected) < 5e-4
    assert max(far([a], [b]) for a, b in zip(got, expected, strict=True)) < 2e-3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_apply_computes_what_the_student_was_trained_as(
    path: Path, nodes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a recording, saved as a distillation saves them, loaded and applied by the nodes."""
    golden = Golden.read(path)
    monkeypatch.setattr("comfy.ldm.flux.model.timestep_embedding", sinusoids(golden.tensors["timestep_freqs"]))
    file = tmp_path / "mine.safetensors"
    metadata = file_metadata(golden.radius, golden.down_factor, {"clear.base": "tiny"})
    save_weights(file, as_leaves(golden.part("clear.")), metadata)
    patched = nodes_api.apply(golden.model(), nodes_api.weights(file), backend="sdpa", proportional_attention=False)
    assert far([golden.forward(patched)], [golden.tensors["pert.out"]]) < 3e-6


def test_recordings_with_and_without_pooling() -> None:
    assert {path.stem for path in FILES} == {"distill_down2_r3_t7", "distill_local_r3"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a file of tensors", "is no recorded step"),
        ({"x": torch.zeros(1)}, "is no recorded step"),
        (None, "is no recorded step"),
    ],
    ids=["garbage", "other tensors", "not there"],
)
def test_another_file_is_refused_in_a_line(
    tmp_path: Path, content: bytes | dict[str, Tensor] | None, said: str
) -> None:
    file = tmp_path / "file.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_file(content, file)
    done = distill("--replay", file, "--out", tmp_path / "out.safetensors")
    assert done.returncode == 1
    assert said in done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
