"""Bands through the real server: the picture is the plain sampler's, and nothing bad outlives a prompt."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from devtools import workflow
from devtools.client import ClientError, Run

DEVICES = {"devices": "cpu", "bands": 1, "text_merge": "exact"}


def tiled(prompt: Any, **inputs: Any) -> Any:
    """The prompt with the pack's sampler instead of the core's."""
    prompt = workflow.changed(prompt)
    node = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]
    node["class_type"] = "CLEARTiledSampler"
    node["inputs"] |= DEVICES | inputs
    return prompt


def multi_gpu(prompt: Any, **inputs: Any) -> Any:
    """The prompt with CLEAR Multi-GPU in the model's wire behind Apply CLEAR Attention."""
    prompt = workflow.changed(prompt)
    apply = workflow.node_id(prompt, "CLEARApply")
    end = prompt[workflow.node_id(prompt, "ModelSamplingFlux")]["inputs"]
    assert end["model"] == [apply, 0]
    prompt["cut"] = {
        "class_type": "CLEARMultiGPU",
        "inputs": {"model": [apply, 0], **DEVICES, **inputs},
        "_meta": {"title": "Cut"},
    }
    end["model"] = ["cut", 0]
    return prompt


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(("change", "blamed"), [(multi_gpu, "CLEARMultiGPU"), (tiled, "CLEARTiledSampler")])
def test_without_apply_the_error_names_the_node(client: Any, demo_prompt: Any, change: Any, blamed: str) -> None:
    prompt = change(demo_prompt())
    apply = workflow.node_id(prompt, "CLEARApply")
    model = prompt.pop(apply)["inputs"]["model"]
    for node in prompt.values():
        node["inputs"] = {name: model if value == [apply, 0] else value for name, value in node["inputs"].items()}
    with pytest.raises(ClientError, match=rf"^{blamed} \(node \w+\) failed: CLEAR Multi-GPU works on .* connect Apply"):
        client.run(prompt)


def test_apply_may_come_after_multi_gpu(client: Any, demo_prompt: Any, picture: Any) -> None:
    prompt = multi_gpu(demo_prompt(), bands=2)
    apply, last = workflow.node_id(prompt, "CLEARApply"), workflow.node_id(prompt, "ModelSamplingFlux")
    before = picture(client.run(prompt))
    prompt["cut"]["inputs"]["model"] = prompt[apply]["inputs"]["model"]
    prompt[apply]["inputs"]["model"] = ["cut", 0]
    prompt[last]["inputs"]["model"] = [apply, 0]
    assert difference(picture(client.run(prompt)), before) == 0


def test_the_picture_is_the_plain_samplers(client: Any, demo_prompt: Any, picture: Any) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=11, width=96, height=176)
    plain = picture(client.run(prompt))
    assert difference(picture(client.run(tiled(prompt))), plain) == 0
    for change in (tiled, multi_gpu):
        run = client.run(change(prompt, devices="cpu,cpu", bands=5))
        assert difference(picture(run), plain) <= 1
        said = [text for _, text in run.texts]
        assert any("5 bands of 2 to 3 rows of tokens on cpu, cpu" in text for text in said)
        assert any("CLEAR ran: 20 layer calls by" in text and "in bands" in text for text in said)
        sampler = workflow.node_id(prompt, "SamplerCustomAdvanced")
        assert [step.value for step in run.steps_of(sampler)] == [1, 2]
        assert run.previews


@pytest.mark.parametrize(
    "name", [name for name in workflow.NAMES if any(one in name for one in ("8k", "16k", "multi"))]
)
def test_the_shipped_workflows_run(client: Any, picture: Any, name: str) -> None:
    data = io.BytesIO()
    Image.effect_noise((96, 96), 60).convert("RGB").save(data, "PNG")
    uploaded = client.upload("to_enlarge.png", data.getvalue())
    devices = {"devices": "cpu,cpu"} if "multi" in name else {}
    small: workflow.Changes = {
        "LoadImage": {"image": uploaded},
        "Size": {"width": 96, "height": 80},
        "BasicScheduler": {"steps": 2},
        "CLEARTiledSampler": devices,
        "UNETLoader": {"weight_dtype": "default"},
    }
    prompt = workflow.changed(workflow.server_form(name), workflow.DEMO.changes(), small)
    prompt[workflow.node_id(prompt, "UNETLoader")]["inputs"]["weight_dtype"] = "default"
    run = client.run(prompt)
    assert run.status == "success"
    assert picture(run).shape == (80, 96, 3)
    assert any("bands of" in text for _, text in run.texts)
    plain = workflow.changed(prompt, {"CLEARTiledSampler": {"bands": 1, "devices": "cpu"}})
    assert difference(picture(client.run(plain)), picture(run)) <= 1


def test_nonsense_is_refused_when_queued(client: Any, demo_prompt: Any) -> None:
    for inputs, words in (
        ({"devices": "cuda:0; rm -rf /"}, "devices has"),
        ({"bands": 10**9}, "bands"),
        ({"text_merge": "sometimes"}, "text_merge"),
    ):
        with pytest.raises(Exception, match=words):
            client.run(tiled(demo_prompt(), **inputs))


def _restless(client: Any, server: Any, picture: Any, demo_prompt: Any, more: Callable[[int], bool]) -> None:
    """Prompts of all kinds, half of them cancelled somewhere; the next picture is right, nothing is left over."""
    chance = random.Random(3)
    first = tiled(demo_prompt({"CLEARApply": {"radius": 3}}, seed=21, height=96, width=64), devices="cpu,cpu", bands=4)
    expected = picture(client.run(first))
    process = psutil.Process(server.pid)
    threads, memory = process.num_threads(), []
    number = 0
    while more(number):
        number += 1
        asked = {"seed": chance.randrange(2**31), "width": chance.choice([64, 96, 144]), "height": 96, "steps": 2}
        prompt = demo_prompt({"CLEARApply": {"radius": chance.choice([1, 3, 20])}}, **asked)
        change = chance.choice([tiled, multi_gpu])
        prompt = change(
            prompt,
            devices=chance.choice(["cpu", "cpu,cpu", "cpu,cpu,cpu", "cuda:7,cpu"]),
            bands=chance.randrange(0, 9),
            text_merge=chance.choice(["exact", "average"]),
        )
        at = chance.choice([None, 0, 1, 2])

        def cancel(run: Run, at: int | None = at) -> None:
            if at is not None and len(run.texts) > at:
                client.interrupt()

        assert client.run(prompt, cancel).status in ("success", "interrupted")
        if number % 5 == 0:
            again = workflow.changed(first, {"SaveImage": {"filename_prefix": f"again{number}"}})
            again[workflow.node_id(again, "RandomNoise")]["inputs"]["noise_seed"] = 22
            client.run(again)
            again[workflow.node_id(again, "RandomNoise")]["inputs"]["noise_seed"] = 21
            assert difference(picture(client.run(again)), expected) == 0
            memory.append(process.memory_info().rss)
            assert process.num_threads() <= threads + 2
    # Flat: the end is no more than a twentieth above what it was once everything had been loaded.
    assert memory[-1] <= 1.05 * max(memory[: max(1, len(memory) // 4)])


def test_cancelled_prompts_leave_nothing_behind(client: Any, server: Any, picture: Any, demo_prompt: Any) -> None:
    _restless(client, server, picture, demo_prompt, lambda number: number < 10)


@pytest.mark.soak
def test_fifty_prompts_with_random_cancels(client: Any, server: Any, picture: Any, demo_prompt: Any) -> None:
    _restless(client, server, picture, demo_prompt, lambda number: number < 50)


@pytest.mark.soak
def test_half_an_hour_of_mixed_prompts_keeps_memory_flat(
    client: Any, server: Any, picture: Any, demo_prompt: Any
) -> None:
    end = time.monotonic() + 30 * 60
    _restless(client, server, picture, demo_prompt, lambda number: time.monotonic() < end or number % 5 != 0)
