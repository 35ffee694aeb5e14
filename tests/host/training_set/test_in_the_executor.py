"""CLEAR Training Set in the host's own executor: what is checked when it is queued, and what runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from devtools.models import flux_model, inputs

from host.executing import Prompt, Queue
from host.giving import giving


class Clip:
    """Text embeddings that tell the prompts apart; the other tests have the real encoders."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> Any:
        given = inputs(2, 2, seed=len(tokens))
        return [[given["context"], {"pooled_output": given["pooled_text"]}]]


class Vae:
    first_stage_model = None
    latent_channels = 16

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.movedim(-1, 1).mean(1, keepdim=True)[..., ::8, ::8].repeat(1, 16, 1, 1)


@pytest.fixture
def machine(host: Any, pack: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue(samples=("CLEAR_TRAINING_SET",), report=("STRING", {"forceInput": True}))
    # One widget, as a loader with a file's name.
    given = {"Model": flux_model(), "Clip": Clip(), "Vae": Vae()}
    nodes = {name: giving(name.upper(), value, "file") for name, value in given.items()}
    for name, node in {**nodes, "Keep": made.keep}.items():
        monkeypatch.setitem(host.NODE_CLASS_MAPPINGS, name, node)
    return made


def prompt(source: str, files: dict[str, str] | None = None, **changed: Any) -> Prompt:
    """The node with everything connected; None takes an input away. files: the widgets of the loaders."""
    asked = {"name": "a set", "source": source, "clip": ["clip", 0], "vae": ["vae", 0], "model": ["model", 0]}
    asked |= {"folder": "", "prompts": "a hill", "width": 64, "height": 80, "steps": 1, "seed": 1, **changed}
    found: Prompt = {
        name: {"class_type": name.capitalize(), "inputs": {"file": (files or {}).get(name, "one")}}
        for name in ("clip", "vae", "model")
    }
    found["set"] = {"class_type": "CLEARTrainingSet", "inputs": {k: v for k, v in asked.items() if v is not None}}
    found["keep"] = {"class_type": "Keep", "inputs": {"samples": ["set", 0], "report": ["set", 1]}}
    return found


@pytest.mark.parametrize(
    ("source", "changed", "said"),
    [
        ("images in a folder", {"vae": None}, "vae is not connected; the source 'images in a folder' needs it"),
        ("generate from prompts", {"model": None}, "model is not connected; the source 'generate from prompts' needs"),
        ("generate from prompts", {"prompts": ""}, "prompts has no line with text"),
        ("images in a folder", {"folder": "not there"}, "folder is 'not there', which is no folder on the machine"),
        ("generate from prompts", {"name": "../../x"}, "name is '../../x'; allowed are letters"),
        ("generate from prompts", {"width": 2**40}, f"width is {2**40}; allowed is 64 to 4096"),
        ("something else", {}, "source is 'something else'; choose one of"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_queued(
    machine: Queue, tmp_path: Path, source: str, changed: dict[str, Any], said: str
) -> None:
    folder = {"folder": str(tmp_path)} if "folder" not in changed else {}
    assert said in machine.queue(prompt(source, **folder, **changed))
    assert not machine.kept


def test_what_the_source_does_not_need_may_be_missing(machine: Queue) -> None:
    assert machine.queue(prompt("generate from prompts", vae=None)) == "execution_success"
    ((samples, report),) = machine.kept
    assert len(samples) == 1 and samples.read(0).mean.shape == (16, 10, 8)
    assert "1 made, 0 there before" in report


def test_it_runs_again_when_an_image_comes_and_else_not(machine: Queue, folder: Path) -> None:
    def put(name: str) -> None:
        Image.new("RGB", (64, 80), (9, 9, 9)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")

    put("a")
    asked = prompt("images in a folder", folder=str(folder), model=None)
    assert machine.queue(asked) == machine.queue(asked) == "execution_success"
    assert len(machine.kept) == 1
    put("b")
    assert machine.queue(asked) == "execution_success"
    assert "1 made, 1 there before" in machine.kept[1][1]
    assert len(machine.kept[1][0]) == 2


def test_another_file_of_the_model_or_the_text_encoder_makes_other_samples(machine: Queue) -> None:
    made = []
    for files in ({}, {"model": "two"}, {"clip": "two"}, {"vae": "two"}, {}):
        assert machine.queue(prompt("generate from prompts", files)) == "execution_success"
        made.append(machine.kept[-1][0].files)
    assert len(set(made)) == 3
    assert made[0] == made[3] == made[4]  # generating uses no VAE
