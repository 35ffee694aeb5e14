"""A whole step of FLUX: the host's own model, dense and with Apply CLEAR Attention, seconds and peak memory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .timing import medians, wait
from harness.models import FULL_SIZE, flux_model, run_forward

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("CLEAR_HOST", ROOT / ".dev" / "host"))
TEXT = 512


@dataclass(frozen=True, slots=True)
class Task:
    """side: image tokens a side. radii: 0 is dense."""

    side: int
    radii: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One answer. peak_gib: device memory beyond what was there before the step; None on a CPU."""

    pixels: int
    radius: int
    seconds: float
    speedup: float
    peak_gib: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def tasks(device: torch.device) -> list[Task]:
    if device.type == "cuda":
        return [Task(side, (0, 8, 16, 32)) for side in (64, 128, 256, 512)]
    return [Task(64, (0, 8))]


def _shape(device: torch.device) -> dict[str, Any]:
    return FULL_SIZE if device.type == "cuda" else {**FULL_SIZE, "depth": 1, "depth_single_blocks": 1}


def described(device: torch.device) -> str:
    shape = _shape(device)
    blocks = f"{shape['depth']} double and {shape['depth_single_blocks']} single blocks"
    return f"hidden size {shape['hidden_size']}, {blocks}, random weights, {TEXT} text tokens"


class Bench:
    """The host's FLUX and the node, made once for all sizes."""

    def __init__(self, device: torch.device) -> None:
        _host()
        self.device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = flux_model(device=device, dtype=dtype, **_shape(device))
        self.node = _apply_node()

    def measure(self, task: Task, repeats: int) -> Iterator[Step]:
        """Dense and every radius, in one run."""
        given = _inputs(task.side, self.device)
        models = {radius: _apply(self.node, self.model, radius) if radius else self.model for radius in task.radii}
        functions = {str(radius): lambda model=model: run_forward(model, **given) for radius, model in models.items()}
        peaks = {radius: self._peak(functions[str(radius)]) for radius in task.radii}
        seconds = medians(functions, self.device, repeats)
        for radius in task.radii:
            taken = seconds[str(radius)]
            yield Step(task.side * 16, radius, taken, seconds["0"] / taken, peaks[radius])

    def _peak(self, function: Callable[[], object]) -> float | None:
        if self.device.type != "cuda":
            return None
        wait(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        wait(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**30


def table(steps: list[Step]) -> str:
    lines = [f"{'image':>7} {'radius':>7} {'seconds':>9} {'against dense':>14} {'peak GiB':>9}"]
    for step in steps:
        peak = "" if step.peak_gib is None else f"{step.peak_gib:.2f}"
        radius = step.radius or "dense"
        lines.append(f"{step.pixels:>7} {radius:>7} {step.seconds:>9.3f} {step.speedup:>12.2f} x {peak:>9}")
    return "\n".join(lines)


def _host() -> None:
    """Put ComfyUI on the path, behind this repository: both have something called `nodes`."""
    if not (HOST / "comfy").is_dir():
        raise SystemExit(f"There is no ComfyUI in {HOST}. Run this as: python dev.py bench")
    if str(HOST) not in sys.path:
        sys.path.append(str(HOST))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def _apply_node() -> Any:
    """The class of Apply CLEAR Attention, from this pack loaded as a package of its own."""
    spec = importlib.util.spec_from_file_location(
        "clear_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["clear_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["clear_pack"])
    return importlib.import_module("clear_pack.nodes.apply").CLEARApply


def _apply(node: Any, model: Any, radius: int) -> Any:
    """The MODEL that the node gives, its other inputs as they are on a new one."""
    defaults = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
    return node.PREPARE_CLASS_CLONE({}).execute(model=model, weights=None, **{**defaults, "radius": radius}).args[0]


def _inputs(side: int, device: torch.device) -> dict[str, torch.Tensor]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    return {
        "latent": random(1, 16, side * 2, side * 2),
        "timestep": torch.full((1,), 0.6, device=device),
        "context": random(1, TEXT, FULL_SIZE["context_in_dim"]),
        "pooled_text": random(1, FULL_SIZE["vec_in_dim"]),
        "guidance": torch.full((1,), 3.5, device=device),
    }
