"""`dev.py run`: ComfyUI with this pack installed, with its page, or headless with a report.

Headless, the shipped workflow runs twice in one server, dense and with CLEAR, through the same API that the
page uses: core loader nodes, real sampler, real VAE decode. The host's dense attention is PyTorch's own
scaled_dot_product_attention, the fastest that every machine has.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from clear_core.flux import token_grid
from clear_core.layout import TokenLayout
from clear_core.pattern import attention_flops
from clear_core.window import Window
from devtools import checkpoints, workflow
from devtools.client import ClientError, ComfyClient, Run, Step
from devtools.machine import processor_name
from devtools.server import BASE, PACK_FOLDER, ComfyServer, ServerError, free_port

ROOT = Path(__file__).resolve().parents[1]
DEV = ROOT / ".dev"
# A folder of models/ -> the older name it may still have.
_OLDER_NAMES = {"diffusion_models": "unet", "text_encoders": "clip"}


@dataclass(frozen=True, slots=True)
class Task:
    """What a headless run makes."""

    width: int
    height: int
    steps: int


# Both runs, decoding included, take about six minutes on two CPU cores; larger where there is a GPU.
ON_CPU = Task(1280, 1280, 3)
ON_GPU = Task(2048, 2048, 10)

_DEMO_NOTE = """
**This copy** uses the demo checkpoint: FLUX.1-dev's shape, one block of each kind, random weights. Its pictures \
are textures; what it shows is that everything runs, and how fast.
"""


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    try:
        files = choose_files([BASE / "models", *([options.models] if options.models else [])])
        flags = _extra_models(options.models) if options.models else []
        if options.headless:
            return headless(options, files, flags)
        return serve(options, files, flags)
    except (ClientError, ServerError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130


# ---- which files -------------------------------------------------------------------------------------


def choose_files(folders: list[Path]) -> workflow.Files:
    """The real FLUX if the shipped workflow's files are all there, else the demo's, made if need be."""
    missing = [path for path in workflow.SHIPPED.paths() if not any(_find(folder, path) for folder in folders)]
    if not missing:
        return workflow.SHIPPED
    if len(missing) < len(workflow.SHIPPED.paths()):
        print(f"Not all of the shipped workflow's files are there (missing: {', '.join(missing)});")
        print("using the demo checkpoint.")
    if checkpoints.missing_demo_files(BASE / "models"):
        print("Making the demo checkpoint (FLUX.1-dev's shape, 1 + 1 blocks, random weights):", flush=True)
        # In a process of its own: it imports the host, which this one has no need of.
        subprocess.run([sys.executable, "-m", "devtools.checkpoints", BASE / "models"], check=True)
    return workflow.DEMO


def _find(folder: Path, path: str) -> bool:
    kind, _, name = path.partition("/")
    return any((folder / kind / name).is_file() for kind in (kind, _OLDER_NAMES.get(kind, kind)))


def _extra_models(folder: Path) -> list[str]:
    """The server's options that make it read a further models folder."""
    if not folder.is_dir():
        raise OSError(f"--models: there is no folder {folder}")
    lines = ["extra:", f"  base_path: {json.dumps(str(folder.resolve()))}"]
    for kind in ("diffusion_models", "text_encoders", "vae", "loras", "clear"):
        lines.append(f"  {kind}: |")
        lines += [f"    {name}" for name in dict.fromkeys((kind, _OLDER_NAMES.get(kind, kind)))]
    config = DEV / "extra_model_paths.yaml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--extra-model-paths-config", str(config)]


# ---- with a page -------------------------------------------------------------------------------------


def serve(options: argparse.Namespace, files: workflow.Files, flags: list[str]) -> int:
    """Run the server until Ctrl-C."""
    port = free_port(options.port or 8188)
    if options.port and port != options.port:
        print(f"Port {options.port} is in use; taking {port}.")
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(DEV / "server.log", port=port, options=flags, echo=_echo) as server:
        where = _put_workflow(ComfyClient(server.address), files)
        time.sleep(0.3)  # let the server's own last lines come first
        print(f"\nComfyUI with CLEAR is at {server.address}")
        print(f"In the page: Workflows > {where.stem}, or Browse Templates > {PACK_FOLDER}. Ctrl-C stops.", flush=True)
        try:
            return server.wait()
        except KeyboardInterrupt:
            print("\nStopping.")
            return 0


def _put_workflow(client: ComfyClient, files: workflow.Files) -> Path:
    """Put the shipped workflow, with the names of the files present, among the user's workflows; never overwrites."""
    path = BASE / "user" / "default" / "workflows" / ("CLEAR demo.json" if files is workflow.DEMO else "CLEAR.json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        small = workflow.sampling(width=768, height=768, steps=4, seed=1) if files is workflow.DEMO else {}
        ui = workflow.changed_ui(workflow.load(workflow.UI_FILE), client.object_info(), files.changes(), small)
        if files is workflow.DEMO:
            for note in (node for node in ui["nodes"] if node["type"] == "MarkdownNote"):
                note["widgets_values"][0] += _DEMO_NOTE
        path.write_text(json.dumps(ui, indent=2), encoding="utf-8")
    return path


def _echo(text: str) -> None:
    print(text, end="", flush=True)


# ---- without a page ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Measured:
    """What one run cost."""

    seconds_per_step: float
    sampling_memory: float  # bytes, the server process, while sampling
    peak_memory: float  # bytes, the server process, loading and decoding included
    device_memory: float  # bytes in use on the GPU at most; 0 without one
    image: Path
    said: str  # the node's last words


def headless(options: argparse.Namespace, files: workflow.Files, flags: list[str]) -> int:
    """Dense, then CLEAR, then the report."""
    output: Path = options.output or DEV / "output"
    output.mkdir(parents=True, exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    flags = [*flags, "--use-pytorch-cross-attention"]
    with ComfyServer(DEV / "server.log", port=options.port or 0, options=flags) as server:
        client = ComfyClient(server.address, timeout=1800)
        device = client.get_json("/system_stats")["devices"][0]
        task = _task(options, device)
        asked = workflow.sampling(width=task.width, height=task.height, steps=task.steps, seed=1)
        prompt = workflow.changed(workflow.load(), files.changes(), asked)
        dense = _measure(server, client, workflow.without_clear(prompt), "dense", output)
        clear = _measure(server, client, prompt, "CLEAR", output)
    print(report(task, files, device, dense, clear))
    return 0


def _task(options: argparse.Namespace, device: dict[str, Any]) -> Task:
    default = ON_CPU if device["type"] == "cpu" else ON_GPU
    width, height = options.size or (default.width, default.height)
    return Task(width, height, options.steps or default.steps)


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


def seconds_per_step(steps: list[Step]) -> float:
    """The median time from one step's end to the next one's: the first step, which loads, does not count."""
    return statistics.median(later.when - earlier.when for earlier, later in pairwise(steps))


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
    layout = TokenLayout(_text_tokens(clear.said), grid)
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
        f"{task.width} x {task.height} pixels, {layout.tokens} tokens, {task.steps} steps, on {_device_name(device)}",
        "",
        f"{'':28}{'dense':>9}{f'CLEAR r={files.radius}':>13}{'ratio':>9}",
    ]
    lines += [f"{name:28}{a:9.3f}{b:13.3f}{f'{a / b:.2f} x' if b else '':>9}" for name, a, b in rows]
    lines += ["", *(f"  {line}" for line in clear.said.splitlines()), ""]
    lines += [f"images: {dense.image}, {clear.image}"]
    return "\n".join(lines)


def _text_tokens(said: str) -> int:
    """The text length that the node saw: it depends on the prompt and the text encoders."""
    found = re.search(r"CLEAR ran: .*\((\d+) text", said)
    if found is None:
        raise ClientError(f"The run used no window; the node says:\n{said}")
    return int(found[1])


def _device_name(device: dict[str, Any]) -> str:
    return device["name"] if device["type"] != "cpu" else f"the CPU: {processor_name()}"


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) % 16 == 0 == int(height) % 16 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: give width and height in multiples of 16, such as 1024x768")
    return int(width), int(height)


def _steps(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give 2 or more, the first step loads and is not measured")
    return int(text)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py run", description=__doc__)
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--size", type=_size)
    parser.add_argument("--steps", type=_steps)
    parser.add_argument("--models", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
