"""Two ComfyUIs share an image: one drives, the other joins as a worker; the picture is the one of a single machine."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw

from clear_core.cluster.channel import Refused, Token, connect
from devtools import checkpoints_plugins, workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.plugged import different, in_bands, small
from devtools.server import ComfyServer, free_port


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Of processes that are started inside."""
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@pytest.fixture(scope="module")
def address() -> str:
    """Where workers join."""
    return f"127.0.0.1:{free_port()}"


def token_of(server: ComfyServer, address: str) -> str:
    (path,) = re.findall(rf"join at {address}, each with a copy of (.+)", server.log)
    return str(path)


@pytest.fixture(scope="module")
def token(server: ComfyServer, client: ComfyClient, address: str, demo_prompt: Callable[..., Any]) -> Path:
    """The driver's file with the token: made by the first prompt that asks for other machines."""
    client.run(with_machines(demo_prompt(width=64, height=64, steps=1), machines=address))
    return Path(token_of(server, address))


@pytest.fixture(scope="module")
def worker(new_server: Callable[[], ComfyServer], address: str, token: Path) -> Iterator[ComfyServer]:
    made = new_server()
    with environment(CLEAR_WORKER_JOIN=address, CLEAR_WORKER_TOKEN_FILE=str(token)):
        made.start()
    yield made
    made.stop()


def joined(server: ComfyServer, count: int) -> None:
    """Wait until so many workers have joined since the server started."""
    ends = time.monotonic() + 60
    while server.log.count("has joined") < count:
        assert time.monotonic() < ends, server.log[-2000:]
        time.sleep(0.1)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def with_machines(prompt: Any, machines: str, *, everyone: bool = True, **inputs: Any) -> Any:
    """The prompt with CLEAR Multi-GPU behind Apply CLEAR Attention. everyone: nobody is left out by a prediction."""
    prompt = workflow.changed(prompt)
    apply, end = workflow.node_id(prompt, "CLEARApply"), workflow.node_id(prompt, "ModelSamplingFlux")
    given = {"model": [apply, 0], "devices": "cpu", "bands": 1, "text_merge": "exact", **inputs}
    given["machines"] = f"{machines} all" if everyone else machines
    prompt["cut"] = node("CLEARMultiGPU", **given)
    prompt[end]["inputs"]["model"] = ["cut", 0]
    return prompt


def sampled(prompt: Any, **inputs: Any) -> Any:
    """The prompt with CLEAR Tiled Multi-GPU Sampler instead of the core's sampler."""
    prompt = workflow.changed(prompt)
    sampler = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]
    sampler["class_type"] = "CLEARTiledSampler"
    sampler["inputs"] |= {"devices": "cpu", "bands": 1, "text_merge": "exact", **inputs}
    return prompt


def pictures(client: ComfyClient, run: Run) -> np.ndarray:
    """All that a run saved, uint8 [images, height, width, 3]."""
    opened = [Image.open(io.BytesIO(client.image(image))).convert("RGB") for image in run.images()]
    return np.stack([np.asarray(image) for image in opened])


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def texts(run: Run) -> str:
    return "\n".join(text for _, text in run.texts)


def test_the_picture_is_that_of_one_machine(
    client: ComfyClient, server: ComfyServer, worker: ComfyServer, address: str, demo_prompt: Any, picture: Any
) -> None:
    asked = {"seed": 11, "width": 96, "height": 176}
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, **asked)
    plain = picture(client.run(prompt))
    alone = client.run(with_machines(prompt, bands=5, machines=address))
    assert difference(picture(alone), plain) <= 1
    joined(server, 1)
    shared = client.run(with_machines(demo_prompt({"CLEARApply": {"radius": 3}}, **asked), bands=6, machines=address))
    assert difference(picture(shared), plain) <= 1
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    assert "got prompt" in worker.log


def test_links_and_devices_are_measured_and_rows_dealt_by_what_is_predicted(
    client: ComfyClient, server: ComfyServer, worker: ComfyServer, address: str, demo_prompt: Any, picture: Any
) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=17, width=96, height=176)
    plain = picture(client.run(prompt))
    dealt = client.run(with_machines(prompt, bands=6, machines=address, everyone=False))
    assert difference(picture(dealt), plain) <= 1
    assert re.search(r"CLEAR Multi-GPU: [\d.]+ Gbit/s to 127\.0\.0\.1\S* \(cpu\)", server.log)
    # Two processes on the same cores: which of both it is depends on what else these do.
    taken = (
        r"with 127\.0\.0\.1\S* \(cpu\): \d+ of 11 rows, [\d.]+ Gbit/s\npredicted: [\d.e-]+ s a step, [\d.e-]+ s alone"
    )
    left = r"this machine alone\nwithout 127\.0\.0\.1\S* \(cpu\): .* s a step with it, [\d.e-]+ s without"
    assert re.search(f"{taken}|{left}", texts(dealt)), texts(dealt)


def test_the_samplers_picture_is_that_of_one_machine(
    client: ComfyClient, worker: ComfyServer, address: str, demo_prompt: Any, picture: Any
) -> None:
    """Also with CLEAR Multi-GPU and its own machines before it, which a worker must not look for."""
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=17, width=96, height=176)
    plain = picture(client.run(prompt))
    both = sampled(with_machines(prompt, machines=address), bands=6, machines=f"{address} all")
    sampler = workflow.node_id(both, "CLEARTiledSampler")
    for change in (sampled(prompt, bands=6, machines=f"{address} all"), both):
        shared = client.run(change)
        assert any(node == sampler and "with 127.0.0.1" in text for node, text in shared.texts), shared.texts
        assert difference(picture(shared), plain) <= 1


def test_global_context_a_batch_and_guidance_by_two_prompts(
    client: ComfyClient, worker: ComfyServer, address: str, demo_prompt: Any
) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3, "down_factor": 4}}, seed=18, width=128, height=192)
    prompt = workflow.changed(prompt, {"EmptySD3LatentImage": {"batch_size": 2}})
    guider = prompt[workflow.node_id(prompt, "BasicGuider")]
    encode = prompt[workflow.node_id(prompt, "CLIPTextEncode")]
    prompt["other"] = node("CLIPTextEncode", **{**encode["inputs"], "text": "fog"})
    conditions = {"positive": guider["inputs"].pop("conditioning"), "negative": ["other", 0], "cfg": 3.0}
    guider["class_type"], guider["inputs"] = "CFGGuider", {**guider["inputs"], **conditions}
    plain = pictures(client, client.run(prompt))
    assert len(plain) == 2 and difference(*plain) > 1
    shared = client.run(sampled(prompt, bands=4, machines=f"{address} all"))
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    assert difference(pictures(client, shared), plain) <= 1


def test_a_controlnets_residuals_reach_the_worker(
    client: ComfyClient, worker: ComfyServer, address: str, picture: Any, plugin_files: None
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
    cut["bands"]["inputs"]["machines"] = f"{address} all"
    shared = client.run(cut)
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    assert difference(picture(shared), plain) <= 1


def test_strangers_are_refused_in_a_line_each_and_the_worker_stays(
    client: ComfyClient, server: ComfyServer, worker: ComfyServer, address: str, demo_prompt: Any
) -> None:
    host, port = address.split(":")
    start, left = len(server.log), server.log.count("has left")

    def refused() -> list[str]:
        return [line for line in server.log[start:].splitlines() if "CLEAR Multi-GPU: refused" in line]

    with socket.create_connection((host, int(port)), timeout=30) as stranger:
        stranger.sendall(bytes(range(256)) * 64)
        with suppress(ConnectionResetError):  # it closes without having read all
            assert stranger.recv(1) == b""
    wrong = Token("the token of another cluster, as long as one")
    with pytest.raises(Refused, match="another token"):
        connect(host, int(port), wrong, timeout=30)
    ends = time.monotonic() + 30
    while len(refused()) < 2 and time.monotonic() < ends:
        time.sleep(0.1)
    shared = client.run(with_machines(demo_prompt(seed=19, width=96, height=176), bands=6, machines=address))
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    garbage, other = refused()
    assert re.search(r"refused 127\.0\.0\.1:\d+: ", garbage) and "it has another token" in other, (garbage, other)
    assert wrong.text not in server.log and server.log.count("has left") == left


def test_a_lora_before_it_is_on_both_and_one_behind_it_is_refused(
    client: ComfyClient, worker: ComfyServer, address: str, demo_prompt: Any, picture: Any, plugin_files: None
) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=12, width=96, height=128)
    without = picture(client.run(prompt))
    apply = workflow.node_id(prompt, "CLEARApply")
    lora = {"lora_name": "demo_lora.safetensors", "strength_model": 8.0}
    prompt["lora"] = node("LoraLoaderModelOnly", **lora, model=prompt[apply]["inputs"]["model"])
    prompt[apply]["inputs"]["model"] = ["lora", 0]
    plain = picture(client.run(prompt))
    assert difference(plain, without) > 1
    shared = client.run(with_machines(prompt, bands=4, machines=address))
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    assert difference(picture(shared), plain) <= 1
    behind = with_machines(demo_prompt({"CLEARApply": {"radius": 3}}), bands=4, machines=address)
    end = workflow.node_id(behind, "ModelSamplingFlux")
    behind["lora"] = node("LoraLoaderModelOnly", **lora, model=["cut", 0])
    behind[end]["inputs"]["model"] = ["lora", 0]
    with pytest.raises(ClientError, match="The model is changed behind the node that has machines"):
        client.run(behind)


def test_a_cancelled_prompt_leaves_the_worker_ready(
    client: ComfyClient, server: ComfyServer, worker: ComfyServer, address: str, demo_prompt: Any, picture: Any
) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=15, width=96, height=176, steps=20)
    sampler = workflow.node_id(prompt, "SamplerCustomAdvanced")

    def cancel(run: Run) -> None:
        if run.steps_of(sampler):
            client.interrupt()

    assert client.run(with_machines(prompt, bands=6, machines=address), cancel).status == "interrupted"
    short = demo_prompt({"CLEARApply": {"radius": 3}}, seed=16, width=96, height=176)
    shared = client.run(with_machines(short, bands=5, machines=address))  # not 6: the node, not run again, says nothing
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    assert difference(picture(shared), picture(client.run(short))) <= 1
    assert server.log.count("has left") == 0


def test_a_worker_that_is_killed_costs_a_forward_and_may_come_back(
    client: ComfyClient,
    server: ComfyServer,
    worker: ComfyServer,
    address: str,
    demo_prompt: Any,
    picture: Any,
) -> None:
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=13, width=96, height=176, steps=4)
    plain = picture(client.run(prompt))
    killed: list[int] = []

    def kill(run: Run) -> None:
        if not killed and run.steps_of(workflow.node_id(prompt, "SamplerCustomAdvanced")):
            killed.append(worker.pid)
            psutil.Process(worker.pid).kill()

    run = client.run(with_machines(prompt, bands=6, machines=address), kill)
    assert run.status == "success" and killed
    assert "with 127.0.0.1" in texts(run) and "this machine alone" in texts(run)
    assert difference(picture(run), plain) <= 1
    assert "has left" in server.log
    before = server.log.count("has joined")
    with environment(CLEAR_WORKER_JOIN=address, CLEAR_WORKER_TOKEN_FILE=token_of(server, address)):
        worker.stop()
        worker.start()
    joined(server, before + 1)
    other = demo_prompt({"CLEARApply": {"radius": 3}}, seed=14, width=96, height=176)
    again = client.run(with_machines(other, bands=6, machines=address))
    assert "with 127.0.0.1" in texts(again), texts(again)


def test_without_its_driver_a_worker_stops(new_server: Callable[[], ComfyServer], demo_prompt: Any) -> None:
    """The driver is killed in the middle of a prompt; the worker ends its own, and waits for a driver."""
    at = f"127.0.0.1:{free_port()}"
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, seed=18, width=96, height=176, steps=40)
    with new_server() as driver:
        client = ComfyClient(driver.address)
        client.run(with_machines(demo_prompt(width=64, height=64, steps=1), machines=at))
        worker = new_server()
        with environment(CLEAR_WORKER_JOIN=at, CLEAR_WORKER_TOKEN_FILE=token_of(driver, at)):
            worker.start()
        try:
            joined(driver, 1)
            killed: list[int] = []

            def kill(run: Run) -> None:
                if not killed and run.steps_of(workflow.node_id(prompt, "SamplerCustomAdvanced")):
                    killed.append(len(ComfyClient(worker.address).get_json("/queue")["queue_running"]))
                    psutil.Process(driver.pid).kill()

            with pytest.raises((OSError, ClientError)):
                client.run(with_machines(prompt, bands=6, machines=at), kill)
            assert killed == [1]
            ends = time.monotonic() + 60
            while ComfyClient(worker.address).get_json("/queue")["queue_running"] or "trying again" not in worker.log:
                assert time.monotonic() < ends, worker.log[-2000:]
                time.sleep(0.2)
            assert "Prompt executed" in worker.log
        finally:
            worker.stop()
