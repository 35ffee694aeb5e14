"""`python dev.py distill CONFIG.toml`: what it refuses, and a step of FLUX at its full width."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from clear_core.distill.samples import Sample, write_sample
from devtools.checkpoints import FLUX
from devtools.distill_run import ConfigError, read
from devtools.inprocess import HOST, ROOT

GOOD = 'name = "mine"\nmodel = "flux.safetensors"\nsamples = "set"\nfolder = "made"\n'
SETTINGS = "[settings]\nradius = 2\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "cannot be read"),
        (SETTINGS, "model, samples, folder, name missing"),
        (GOOD + "colour = 1\n" + SETTINGS, "colour unknown"),
        (GOOD.replace('"mine"', "3") + SETTINGS, "name is 3; a value of type str"),
        (GOOD + "save_every = true\n" + SETTINGS, "save_every is True; a value of type int"),
        (GOOD + 'weight_dtype = "int4"\n' + SETTINGS, "weight_dtype is 'int4'; choose one of default"),
        (GOOD + 'base = "split"\n' + SETTINGS, "base is 'split'; choose one of replicated, sharded"),
        (GOOD + "start_base = 1\n" + SETTINGS, "start_base is 1; a value of type str"),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read(file)


def test_the_shipped_configuration_is_one() -> None:
    config = read(ROOT / "devtools" / "distill.toml")
    assert config.settings["batch"] == 32


def distill(config: Path) -> subprocess.CompletedProcess[str]:
    """Without the set-up of dev.py."""
    return subprocess.run(
        [sys.executable, "-m", "devtools.distill_run", str(config)],
        cwd=ROOT,
        env={**os.environ, "CLEAR_HOST": str(HOST)},
        capture_output=True,
        text=True,
        check=False,
    )


def write(folder: Path, **settings: Any) -> Path:
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    (folder / "config.toml").write_text(GOOD + "[settings]\n" + "\n".join(lines))
    return folder / "config.toml"


def test_what_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    done = distill(write(tmp_path, radius=2))
    assert done.returncode == 1
    assert done.stderr.strip().endswith("CLEAR Training Set makes them.")
    assert "Traceback" not in done.stderr


def test_one_process_cannot_shard_and_says_so_before_it_loads(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for file in ("flux.safetensors", "set/0.safetensors"):
        (tmp_path / file).touch()
    config = write(tmp_path, radius=2)
    config.write_text('base = "sharded"\n' + config.read_text())
    done = distill(config)
    assert done.returncode == 1
    assert "needs several processes, and this is a single one. Start it by torchrun" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_step_at_full_width_writes_a_lora(tmp_path: Path, models: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "flux.safetensors").symlink_to(models / FLUX)
    sample = {"cross_attn": torch.zeros(4, 4096), "pooled_output": torch.zeros(768)}
    latent = torch.randn(16, 12, 12, generator=torch.Generator().manual_seed(0))
    write_sample(tmp_path / "set" / "0.safetensors", Sample(latent, latent * 0, sample, "a prompt"), {})
    done = distill(write(tmp_path, radius=2, output="LoRA", rank=2, steps=1, method="end to end"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step 1 of 1, end to end: loss " in done.stdout
    with safe_open(tmp_path / "made" / "mine.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == 2 * 7
        assert file.metadata()["clear.output"] == "LoRA"
