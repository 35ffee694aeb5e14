"""The shipped workflows that train, small, on the demo's files: what they make, and what it is good for afterwards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools import workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.pictures import scene
from devtools.server import ComfyServer

SIDE = 96
"""6 x 6 tokens: radius 2 leaves much of an image out of sight."""
WEIGHTS, LORA, BLOCKS = "weights_of_a_test", "lora_of_a_test", "blocks_of_a_test"

Prompt = dict[str, Any]


@pytest.fixture
def made(models: Path) -> Iterator[dict[str, Path]]:
    """Where the results will lie; other tests do not find them."""
    loras = models / "loras"
    files = {
        "clear": models / "clear" / f"{WEIGHTS}.safetensors",
        "loras": loras / f"{LORA}.safetensors",
        "blocks": loras / f"{BLOCKS}.safetensors",
    }
    yield files
    for file in files.values():
        file.unlink(missing_ok=True)


def small(name: str, *changes: workflow.Changes) -> Prompt:
    """A shipped workflow on the demo's files, a few steps of everything."""
    prompt = workflow.server_form(name)
    kinds = {node["class_type"] for node in prompt.values()}
    files = {kind: values for kind, values in workflow.DEMO.changes().items() if kind in kinds}
    own: workflow.Changes = {
        "CLEARTrainingSet": {"width": SIDE, "height": SIDE, "steps": 1},
        "CLEARDistill": {"radius": 2, "rank": 4, "steps": 2},
        "UNETLoader": {**files["UNETLoader"], "weight_dtype": "default"},  # on a CPU fp8 takes most of a step's time
    }
    return workflow.changed(prompt, files, own, *changes)


def one_step() -> workflow.Changes:
    """For a workflow with more than one Save Image."""
    sampling = workflow.sampling(width=SIDE, height=SIDE, steps=1, seed=1)
    del sampling["SaveImage"]
    return sampling


def picture(client: ComfyClient, run: Run, prompt: Prompt, title: str) -> np.ndarray:
    """What the node of that title saved: uint8 [height, width, 3]."""
    (reference,) = run.outputs[workflow.node_id(prompt, title)]["images"]
    assert reference["type"] == "output"
    with Image.open(io.BytesIO(client.image(reference))) as image:
        return np.asarray(image.convert("RGB"))


def last_text(run: Run, prompt: Prompt, kind: str) -> str:
    return [text for node, text in run.texts if node == workflow.node_id(prompt, kind)][-1]


def test_weights_are_made_used_and_loaded_again(
    client: ComfyClient, made: dict[str, Path], demo_prompt: Any, shown: Any
) -> None:
    prompts = {"prompts": "a fox in the snow\n\na boat on a lake"}
    prompt = small("21_distill_weights", {"CLEARTrainingSet": prompts, "CLEARDistill": {"name": WEIGHTS}}, one_step())
    run = client.run(prompt)
    assert made["clear"].is_file()
    assert last_text(run, prompt, "CLEARTrainingSet").startswith(f"2 samples of {SIDE} x {SIDE}")
    assert last_text(run, prompt, "CLEARDistill").startswith(f"{made['clear']} is made: 2 steps")
    said = last_text(run, prompt, "CLEARApply")
    assert made["clear"].name in said
    assert "radius 2" in said
    assert "CLEAR ran: 2 layer calls" in said
    assert picture(client, run, prompt, "Save curves").shape[1] == 1600
    image = picture(client, run, prompt, "Save image")
    assert image.shape == (SIDE, SIDE, 3)
    assert image.std() > 10

    # Another seed of the image: nothing is trained again.
    again = client.run(workflow.changed(prompt, {"RandomNoise": {"noise_seed": 2}}))
    assert {workflow.node_id(prompt, kind) for kind in ("CLEARTrainingSet", "CLEARDistill")} <= set(again.cached)

    # And from the file, in the workflow that a user has.
    loaded = demo_prompt(
        {
            "CLEARWeightsLoader": {"weights_name": made["clear"].name},
            "UNETLoader": {"weight_dtype": "default"},
            "Prompt": {"text": prompt[workflow.node_id(prompt, "Prompt")]["inputs"]["text"]},
        },
        width=SIDE,
        height=SIDE,
        steps=1,
    )
    assert (shown(loaded, "radius 2") == image).all()


def test_where_weights_are_used_a_lora_of_all_layers_is_refused_before_training(
    client: ComfyClient, made: dict[str, Path]
) -> None:
    prompts = {"prompts": "a boat on a lake"}
    layers = {"name": BLOCKS, "output": "LoRA", "layers": "blocks"}
    prompt = small("21_distill_weights", {"CLEARTrainingSet": prompts, "CLEARDistill": layers}, one_step())
    with pytest.raises(ClientError, match="layers is 'blocks', but CLEAR_WEIGHTS is connected: .* set radius 2 and"):
        client.run(prompt)
    assert not made["blocks"].exists()
    del prompt[workflow.node_id(prompt, "CLEARApply")]["inputs"]["weights"]
    prompt = workflow.changed(prompt, {"CLEARApply": {"radius": 2}})
    run = client.run(prompt)
    assert made["blocks"].is_file()
    assert last_text(run, prompt, "CLEARDistill").startswith(f"{made['blocks']} is made: 2 steps")


def test_a_lora_of_a_folder_of_images_is_made_and_loads(
    client: ComfyClient, server: ComfyServer, made: dict[str, Path], tmp_path: Path, demo_prompt: Any, shown: Any
) -> None:
    for name, text in {"one": "hills at a lake", "two": "a lake, mirrored"}.items():
        scene(SIDE, 2 * SIDE).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    folder: workflow.Changes = {
        "CLEARTrainingSet": {"folder": str(tmp_path)},
        "CLEARDistill": {"name": LORA, "learning_rate": 0.01},  # so that two steps can be seen
    }
    prompt = small("22_distill_lora", folder)
    run = client.run(prompt)
    assert made["loras"].is_file()
    assert not made["clear"].exists()
    assert last_text(run, prompt, "CLEARTrainingSet").startswith(f"2 samples of {SIDE} x {SIDE}")
    assert last_text(run, prompt, "CLEARDistill").startswith(f"{made['loras']} is made: 2 steps")
    assert picture(client, run, prompt, "Save curves").shape[1] == 1600

    # As the note says: Load LoRA, then CLEAR at the same radius, without weights.
    alone = demo_prompt({"CLEARApply": {"radius": 2}}, width=SIDE, height=SIDE, steps=1)
    del alone[workflow.node_id(alone, "CLEARWeightsLoader")]
    del alone[workflow.node_id(alone, "CLEARApply")]["inputs"]["weights"]
    before = len(server.log)
    untrained = shown(alone, "radius 2")
    trained = shown(workflow.with_lora(alone, before="CLEARApply", name=made["loras"].name), "radius 2")
    assert "lora key not loaded" not in server.log[before:]
    assert np.abs(trained.astype(int) - untrained).mean() > 1
