"""Two ComfyUIs share an image of the demo checkpoint at FLUX.1-dev's width, with ControlNet and LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from devtools import checkpoints_plugins, workflow
from devtools.client import ClientError, ComfyClient
from devtools.machines import Machines, difference, node, said, with_machines
from devtools.plugged import different, in_bands, small
from devtools.server import ComfyServer


@pytest.fixture(scope="module")
def wide(
    server: ComfyServer, new_server: Callable[[], ComfyServer], client: ComfyClient, demo_prompt: Callable[..., Any]
) -> Iterator[Machines]:
    """The server of all tests as driver, and one worker."""
    with Machines(server, new_server) as made:
        client.run(with_machines(demo_prompt(width=64, height=64, steps=1), made.address))
        made.join()
        yield made


def test_the_picture_is_that_of_one_machine(
    client: ComfyClient, wide: Machines, demo_prompt: Any, picture: Any
) -> None:
    asked = {"seed": 11, "width": 96, "height": 176}
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, **asked)
    plain = picture(client.run(prompt))
    alone = client.run(with_machines(prompt, bands=5, machines=wide.address))
    assert difference(picture(alone), plain) <= 1
    shared = client.run(
        with_machines(demo_prompt({"CLEARApply": {"radius": 3}}, **asked), bands=6, machines=wide.address)
    )
    assert difference(picture(shared), plain) <= 1
    assert "with 127.0.0.1" in said(shared), said(shared)
    assert "got prompt" in wide.workers[0].log


def test_a_controlnets_residuals_reach_the_worker(
    client: ComfyClient, wide: Machines, picture: Any, plugin_files: None
) -> None:
    image = Image.new("RGB", (160, 120), "black")
    ImageDraw.Draw(image).ellipse((30, 20, 90, 80), fill="white")
    files: workflow.Changes = {
        "LoadImage": {"image": client.upload_picture("to_follow.png", image)},
        "ControlNetLoader": {"control_net_name": Path(checkpoints_plugins.CONTROL_UNION).name},
        "ControlNetApplyAdvanced": {"end_percent": 1.0},
    }
    prompt = small("11_controlnet", files, steps=2)
    plain = picture(client.run(prompt))
    without = picture(client.run(workflow.changed(prompt, {"ControlNetApplyAdvanced": {"strength": 0.0}})))
    assert different(plain, without)
    cut = in_bands(prompt)
    cut["bands"]["inputs"]["machines"] = f"{wide.address} all"
    shared = client.run(cut)
    assert "with 127.0.0.1" in said(shared), said(shared)
    assert difference(picture(shared), plain) <= 1


def test_a_lora_before_it_is_on_both_and_one_behind_it_is_refused(
    client: ComfyClient, wide: Machines, demo_prompt: Any, picture: Any, plugin_files: None
) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=12, width=96, height=128)
    without = picture(client.run(prompt))
    apply = workflow.node_id(prompt, "CLEARApply")
    lora = {"lora_name": "demo_lora.safetensors", "strength_model": 8.0}
    prompt["lora"] = node("LoraLoaderModelOnly", **lora, model=prompt[apply]["inputs"]["model"])
    prompt[apply]["inputs"]["model"] = ["lora", 0]
    plain = picture(client.run(prompt))
    assert difference(plain, without) > 1
    shared = client.run(with_machines(prompt, bands=4, machines=wide.address))
    assert "with 127.0.0.1" in said(shared), said(shared)
    assert difference(picture(shared), plain) <= 1
    behind = with_machines(demo_prompt({"CLEARApply": {"radius": 3}}), bands=4, machines=wide.address)
    end = workflow.node_id(behind, "ModelSamplingFlux")
    behind["lora"] = node("LoraLoaderModelOnly", **lora, model=["cut", 0])
    behind[end]["inputs"]["model"] = ["lora", 0]
    with pytest.raises(ClientError, match="The model is changed behind the node that has machines"):
        client.run(behind)
