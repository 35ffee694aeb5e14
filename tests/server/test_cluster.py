"""Two ComfyUIs share an image: one drives, the other joins as a worker; the picture is the one of a single machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devtools import workflow
from devtools.client import ComfyClient, Run
from devtools.server import ComfyServer

from server.test_bands import difference, multi_gpu


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


@pytest.fixture(scope="module")
def token(server: ComfyServer, client: ComfyClient, base: Any) -> Path:
    """The driver's file with the token; made here, where no driver has made it yet."""
    path = base.path / "user" / "clear_attention_token.txt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a token of tests that has more than thirty-two characters\n", encoding="utf-8")
    return path


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


def texts(run: Run) -> str:
    return "\n".join(text for _, text in run.texts)


def test_the_picture_is_that_of_one_machine(
    client: ComfyClient, server: ComfyServer, worker: ComfyServer, address: str, demo_prompt: Any, picture: Any
) -> None:
    asked = {"seed": 11, "width": 96, "height": 176}
    prompt = demo_prompt({"CLEARApply": {"radius": 3}}, **asked)
    plain = picture(client.run(prompt))
    alone = client.run(multi_gpu(prompt, bands=5, machines=address))
    assert difference(picture(alone), plain) <= 1
    joined(server, 1)
    shared = client.run(multi_gpu(demo_prompt({"CLEARApply": {"radius": 3}}, **asked), bands=6, machines=address))
    assert difference(picture(shared), plain) <= 1
    assert "with 127.0.0.1" in texts(shared), texts(shared)
    assert "got prompt" in worker.log
