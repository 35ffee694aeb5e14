"""Two ComfyUIs share an image: one drives, the other joins as a worker; the picture is the one of a single machine."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from devtools import workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.server import ComfyServer


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
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{opened.getsockname()[1]}"


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


def with_machines(prompt: Any, **inputs: Any) -> Any:
    """The prompt with CLEAR Multi-GPU behind Apply CLEAR Attention."""
    prompt = workflow.changed(prompt)
    apply, end = workflow.node_id(prompt, "CLEARApply"), workflow.node_id(prompt, "ModelSamplingFlux")
    given = {"model": [apply, 0], "devices": "cpu", "bands": 1, "text_merge": "exact", **inputs}
    prompt["cut"] = node("CLEARMultiGPU", **given)
    prompt[end]["inputs"]["model"] = ["cut", 0]
    return prompt


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
