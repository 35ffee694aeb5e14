"""Many prompts of all kinds through one server, some cancelled, while the weights file comes, goes and changes.

No prompt is lost, every image is the one that a process which has seen nothing else makes, and memory stays flat.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from devtools import checkpoints, workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.server import ComfyServer

CHANGING = "clear_local_8_load_test.safetensors"
"""Is removed and put back between prompts, with one content or another."""


@dataclass(frozen=True)
class Kind:
    """What a prompt asks for. weights: a listed file, or 0 or 1 for CHANGING with that content."""

    weights: str | int
    width: int
    height: int
    radius: int
    strength: float
    lora: str  # the node that it stands before, or ""
    bands: int
    seed: int

    def prompt(self, demo_prompt: Any) -> workflow.Prompt:
        name = CHANGING if isinstance(self.weights, int) else self.weights
        prompt = demo_prompt(
            {
                "CLEARWeightsLoader": {"weights_name": name},
                "CLEARApply": {"radius": self.radius, "strength": self.strength},
            },
            width=self.width,
            height=self.height,
            seed=self.seed,
        )
        if self.lora:
            prompt = workflow.with_lora(prompt, before=self.lora, name=Path(checkpoints.LORA).name)
        if self.bands:
            node = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]
            node["class_type"] = "CLEARTiledSampler"
            node["inputs"] |= {"devices": "cpu,cpu", "bands": self.bands, "text_merge": "exact"}
        return prompt


def some_kind(chance: random.Random, seed: int) -> Kind:
    files = [Path(name).name for name in (checkpoints.CLEAR, checkpoints.CLEAR_DOWN)]
    return Kind(
        weights=chance.choice([0, 0, 1, *files]),
        width=chance.choice([64, 96, 144]),
        height=chance.choice([64, 112, 128]),
        radius=chance.choice([1, 3, 8]),
        strength=chance.choice([1.0, 1.0, 0.5]),
        lora=chance.choice(["", "CLEARApply", "ModelSamplingFlux"]),
        bands=chance.choice([0, 0, 3]),
        seed=seed,
    )


# ---- the file that comes and goes ------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangingFile:
    """CHANGING in the folder of weights, with one of two contents, or absent."""

    path: Path
    contents: tuple[Path, ...]

    def put(self, which: int | None) -> None:
        """Make it this content, or none: as a user does who deletes a file and copies another."""
        self.path.unlink(missing_ok=True)
        if which is not None:
            os.link(self.contents[which], self.path)


@pytest.fixture(scope="module")
def changing(models: Path) -> Iterator[ChangingFile]:
    """Its contents are on the disk of the models folder, so that one can be put there at once."""
    tensors = load_file(models / checkpoints.CLEAR)
    kept = tuple(models / f"clear_load_test_{i}" for i in range(2))
    for i, path in enumerate(kept):
        factor = 1.0 - 1.5 * i
        save_file({key: tensor * torch.tensor(factor, dtype=tensor.dtype) for key, tensor in tensors.items()}, path)
        os.utime(path, (10**9 + i, 10**9 + i))
    file = ChangingFile(models / "clear" / CHANGING, kept)
    yield file
    for path in (*kept, file.path):
        path.unlink(missing_ok=True)


def image_of(client: ComfyClient, run: Run) -> np.ndarray:
    (reference,) = run.images()
    with Image.open(io.BytesIO(client.image(reference))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# ---- the tests -------------------------------------------------------------------------------------------


def load(
    server: ComfyServer,
    client: ComfyClient,
    new_server: Callable[[], ComfyServer],
    demo_prompt: Any,
    changing: ChangingFile,
    *,
    prompts: int,
    kinds: int,
    processes: int,
) -> None:
    """processes: how many fresh ones the kinds' images are made by."""
    chance = random.Random(12)
    every = [some_kind(chance, seed) for seed in range(kinds)]
    every[:2] = [Kind(i, 96, 96, 3, 1.0, "", 0, 100) for i in range(2)]  # the same but for the file's content
    expected = dict(_fresh_images(every, processes, new_server, demo_prompt, changing))
    assert len({image.tobytes() for image in expected.values()}) == len(expected), "every kind has its own image"

    process, memory = psutil.Process(server.pid), []
    done: dict[str, str] = {}
    made = compared = refused = 0
    for number in range(prompts):
        # First each kind in turn, undisturbed; then at random.
        kind = every[number] if number < kinds else chance.choice(every)
        prompt = workflow.changed(kind.prompt(demo_prompt), {"SaveImage": {"filename_prefix": f"load{number}"}})
        there = kind.weights if isinstance(kind.weights, int) else chance.choice([0, 1, None])
        if number >= kinds and isinstance(kind.weights, int) and chance.random() < 0.3:
            changing.put(None)
            with pytest.raises(ClientError, match=f"There is no weights file '{CHANGING}'"):
                client.queue(prompt)
            refused += 1
        changing.put(there)
        cancel_at = chance.choice([None, None, None, 0, 2]) if number > kinds else 0 if number == kinds else None

        def watch(run: Run, at: int | None = cancel_at) -> None:
            if at is not None and len(run.texts) + len(run.steps) > at:
                client.interrupt()

        run = client.run(prompt, watch)
        done[run.prompt_id] = run.status
        made += workflow.node_id(prompt, "SamplerCustomAdvanced") not in run.cached
        if run.status == "success":
            assert np.abs(image_of(client, run) - expected[kind]).max() <= 1, f"prompt {number}: {kind}"
            compared += 1
        if chance.random() < 0.2:
            # The file goes while nothing runs; what is loaded needs it no more.
            changing.put(None)
        memory.append(process.memory_info().rss)

    assert len(done) == prompts
    for prompt_id, status in done.items():
        assert client.history(prompt_id)["status"]["status_str"] == ("success" if status == "success" else "error")
    assert client.get_json("/queue") == {"queue_running": [], "queue_pending": []}
    assert compared >= prompts / 2 and made >= prompts / 3 and refused and compared < prompts
    print(f"{prompts} prompts: {compared} images compared, {prompts - compared} cancelled, {refused} more refused")
    print("memory, MB:", [size >> 20 for size in memory[:: max(1, prompts // 20)]])
    # Flat: the end is no more than a tenth above what it was once everything had been loaded.
    assert memory[-1] <= 1.1 * max(memory[: max(kinds, prompts // 4)])


def _fresh_images(
    kinds: list[Kind],
    processes: int,
    new_server: Callable[[], ComfyServer],
    demo_prompt: Any,
    changing: ChangingFile,
) -> Iterator[tuple[Kind, np.ndarray]]:
    for first in range(processes):
        with new_server() as server:
            client = ComfyClient(server.address)
            for kind in kinds[first::processes]:
                changing.put(kind.weights if isinstance(kind.weights, int) else None)
                yield kind, image_of(client, client.run(kind.prompt(demo_prompt)))


def test_prompts_of_all_kinds_are_right_and_none_is_lost(
    server: Any, client: Any, new_server: Any, demo_prompt: Any, changing: ChangingFile
) -> None:
    load(server, client, new_server, demo_prompt, changing, prompts=8, kinds=4, processes=1)


@pytest.mark.soak
def test_two_hundred_prompts(
    server: Any, client: Any, new_server: Any, demo_prompt: Any, changing: ChangingFile
) -> None:
    load(server, client, new_server, demo_prompt, changing, prompts=200, kinds=12, processes=12)


@pytest.mark.soak
def test_a_full_queue_while_the_cancel_button_is_pressed(client: Any, demo_prompt: Any) -> None:
    """Thirty at once: each comes to an end, and what was not cancelled has an image."""
    chance = random.Random(1)
    ids = [client.queue(demo_prompt(seed=seed, width=chance.choice([64, 96]))) for seed in range(1000, 1030)]
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline and any(client.get_json("/queue").values()):
        time.sleep(chance.uniform(1, 8))
        with suppress(ClientError):
            client.interrupt()
    ended = {prompt_id: client.history(prompt_id) for prompt_id in ids}
    kinds = {prompt_id: entry["status"]["status_str"] for prompt_id, entry in ended.items()}
    assert set(kinds.values()) == {"success", "error"}
    for prompt_id, entry in ended.items():
        messages = [kind for kind, _ in entry["status"]["messages"]]
        if kinds[prompt_id] == "success":
            assert any(output.get("images") for output in entry["outputs"].values())
        else:
            assert "execution_interrupted" in messages and "execution_error" not in messages
