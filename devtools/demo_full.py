"""`dev.py run --headless --full-width`: the shipped workflow dense and with CLEAR at FLUX.1-dev's width, compared.

It runs twice in one server, through the same API that the page uses: core loader nodes, real sampler, real VAE decode.
The host's dense attention is PyTorch's own scaled_dot_product_attention, the fastest that every machine has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from clear_core.flux import token_grid
from clear_core.layout import TokenLayout
from clear_core.pattern import attention_flops
from clear_core.window import Window
from devtools import workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.demo_run import Asked, Task, device_name, seconds_per_step, text_tokens
from devtools.server import ComfyServer

# Both runs, decoding included, take about six minutes on two CPU cores; larger where there is a GPU.
ON_CPU = Task(1280, 1280, 3)
ON_GPU = Task(2048, 2048, 10)


@dataclass(slots=True)
class Measured:
    """What one run cost."""

    seconds_per_step: float
    sampling_memory: float  # bytes, the server process, while sampling
    peak_memory: float  # bytes, the server process, loading and decoding included
    device_memory: float  # bytes in use on the GPU at most; 0 without one
    image: Path
    said: str  # the node's last words


def headless(server: ComfyServer, client: ComfyClient, options: Asked) -> str:
    """Dense, then CLEAR; the report."""
    device = client.get_json("/system_stats")["devices"][0]
    task = (ON_CPU if device["type"] == "cpu" else ON_GPU).asked(options.size, options.steps)
    asked = workflow.sampling(width=task.width, height=task.height, steps=task.steps, seed=1)
    prompt = workflow.changed(workflow.load(), options.files.changes(), asked)
    dense = _measure(server, client, workflow.without_clear(prompt), "dense", options.output)
    clear = _measure(server, client, prompt, "CLEAR", options.output)
    return report(task, options.files, device, dense, clear)


def _measure(server: ComfyServer, client: ComfyClient, prompt: dict[str, Any], name: str, output: Path) -> Measured:
    sampler = workflow.node_id(prompt, "SamplerCustomAdvanced")
    shown = 0
    print(f"{name}: loading", flush=True)

    def show(run: Run) -> None:
        nonlocal shown
        steps = run.steps_of(sampler)
        for index in range(shown, len(steps)):
            pace = f", {steps[index].when - steps[index - 1].when:.2f} s" if index else ""
            end = "; decoding" if steps[index].value == steps[index].total else ""
            print(f"{name}: step {steps[index].value} of {steps[index].total}{pace}{end}", flush=True)
        shown = len(steps)

    with _watch_memory(server, client) as memory:
        run = client.run(prompt, show)
    steps = run.steps_of(sampler)
    path = output / f"{name.lower()}.png"
    path.write_bytes(client.image(run.images()[0]))
    return Measured(
        seconds_per_step=seconds_per_step(steps),
        sampling_memory=memory.process_peak(steps[0].when, steps[-1].when),
        peak_memory=memory.process_peak(0, time.monotonic()),
        device_memory=memory.device_peak,
        image=path,
        said=run.texts[-1][1] if run.texts else "",
    )


class _Memory:
    """The server's memory over time."""

    def __init__(self) -> None:
        self._process: list[tuple[float, int]] = []
        self.device_peak = 0.0

    def take(self, process: psutil.Process) -> None:
        self._process.append((time.monotonic(), process.memory_info().rss))

    def process_peak(self, start: float, end: float) -> float:
        return max((used for when, used in self._process if start <= when <= end), default=0)


@contextmanager
def _watch_memory(server: ComfyServer, client: ComfyClient) -> Iterator[_Memory]:
    """Looks twenty times a second, and at the GPU twice, as long as the block runs."""
    memory, process, done = _Memory(), psutil.Process(server.pid), threading.Event()

    def look() -> None:
        count = 0
        while not done.wait(0.05):
            try:
                memory.take(process)
                if count % 10 == 0:
                    device = client.get_json("/system_stats")["devices"][0]
                    if device["type"] != "cpu":
                        memory.device_peak = max(memory.device_peak, device["vram_total"] - device["vram_free"])
            except (psutil.NoSuchProcess, ClientError):
                return
            count += 1

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()


def report(task: Task, files: workflow.Files, device: dict[str, Any], dense: Measured, clear: Measured) -> str:
    """A short table: what a step, a layer and the memory cost both ways."""
    grid = token_grid(task.width, task.height)
    layout = TokenLayout(text_tokens(clear.said), grid)
    dense_flops, clear_flops = attention_flops(layout, None), attention_flops(layout, Window(files.radius))
    demo = " (demo: 1 double and 1 single block, random weights)" if files is workflow.DEMO else ""
    rows = [
        ("seconds per step", dense.seconds_per_step, clear.seconds_per_step),
        ("attention TFLOP per layer", dense_flops / 1e12, clear_flops / 1e12),
        ("GB while sampling", dense.sampling_memory / 1e9, clear.sampling_memory / 1e9),
        ("GB at most", dense.peak_memory / 1e9, clear.peak_memory / 1e9),
    ]
    if dense.device_memory:
        rows.append(("GB on the GPU at most", dense.device_memory / 1e9, clear.device_memory / 1e9))
    lines = [
        "",
        f"{files.flux}{demo}",
        f"{task.width} x {task.height} pixels, {layout.tokens} tokens, {task.steps} steps, on {device_name(device)}",
        "",
        f"{'':28}{'dense':>9}{f'CLEAR r={files.radius}':>13}{'ratio':>9}",
    ]
    lines += [f"{name:28}{a:9.3f}{b:13.3f}{f'{a / b:.2f} x' if b else '':>9}" for name, a, b in rows]
    lines += ["", *(f"  {line}" for line in clear.said.splitlines()), ""]
    lines += [f"images: {dense.image}, {clear.image}"]
    return "\n".join(lines)
