"""Several ComfyUIs on this machine that share an image: one drives, the others join it as workers."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import workflow
from .client import ComfyClient, Run
from .server import ComfyServer, free_port
from .workflow import Prompt

_PATIENCE = 120.0  # seconds


class Machines:
    """driver: a running server. new_server: makes one that has the same models and is not started yet.

    Workers join at `address` from the first prompt on that asks for it; they end with the context.
    """

    def __init__(self, driver: ComfyServer, new_server: Callable[[], ComfyServer]) -> None:
        self.driver, self.client = driver, ComfyClient(driver.address, timeout=1800)
        self.address = f"127.0.0.1:{free_port()}"
        self.workers: list[ComfyServer] = []
        self._new_server, self._ending = new_server, ExitStack()

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.close()

    @property
    def token(self) -> Path:
        """The driver's file, there once something listens at `address`."""
        (path,) = re.findall(rf"join at {self.address}, each with a copy of (.+)", self.driver.log)
        return Path(path)

    def join(self) -> ComfyServer:
        """One more worker, once it has joined. Raises TimeoutError."""
        worker = self._new_server()
        self._ending.callback(worker.stop)
        self.start(worker)
        self.workers.append(worker)
        return worker

    def leave(self) -> None:
        """The worker that has joined last ends."""
        self.workers.pop().stop()

    def start(self, worker: ComfyServer) -> None:
        """Start a worker of this driver, also once more, and wait until it has joined. Raises TimeoutError."""
        before = self.driver.log.count("has joined")
        with _environment(CLEAR_WORKER_JOIN=self.address, CLEAR_WORKER_TOKEN_FILE=str(self.token)):
            worker.start()
        wait_until(lambda: self.driver.log.count("has joined") > before, worker, self.driver)

    def pictures(self, run: Run) -> np.ndarray:
        """What a run of the driver saved, all of one size: uint8 [images, height, width, 3]."""
        return np.stack([self.picture(image) for image in run.images()])

    def picture(self, image: dict[str, str]) -> np.ndarray:
        """One saved image: uint8 [height, width, 3]."""
        return np.asarray(Image.open(io.BytesIO(self.client.image(image))).convert("RGB"))


def wait_until(condition: Callable[[], bool], *servers: ComfyServer) -> None:
    """Returns once the condition holds. Raises TimeoutError with the end of each log where it never does."""
    ends = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("\n".join(server.log[-2000:] for server in servers))
        time.sleep(0.1)


def said(run: Run) -> str:
    """All that nodes have said in a run."""
    return "\n".join(text for _, text in run.texts)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """The largest between two images' values, of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def with_machines(prompt: Prompt, machines: str, *, everyone: bool = True, **inputs: Any) -> Prompt:
    """The prompt with CLEAR Multi-GPU behind Apply CLEAR Attention. everyone: nobody is left out by a prediction."""
    prompt = workflow.changed(prompt)
    apply, end = workflow.node_id(prompt, "CLEARApply"), workflow.node_id(prompt, "ModelSamplingFlux")
    given = {"model": [apply, 0], "devices": "cpu", "bands": 1, "text_merge": "exact", **inputs}
    given["machines"] = f"{machines} all" if everyone and machines else machines
    prompt["cut"] = node("CLEARMultiGPU", **given)
    prompt[end]["inputs"]["model"] = ["cut", 0]
    return prompt


def sampled(prompt: Prompt, **inputs: Any) -> Prompt:
    """The prompt with CLEAR Tiled Multi-GPU Sampler instead of the core's sampler."""
    prompt = workflow.changed(prompt)
    sampler = prompt[workflow.node_id(prompt, "SamplerCustomAdvanced")]
    sampler["class_type"] = "CLEARTiledSampler"
    sampler["inputs"] |= {"devices": "cpu", "bands": 1, "text_merge": "exact", **inputs}
    return prompt


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Of processes that are started inside."""
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
