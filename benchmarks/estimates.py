"""Steps that `Measure now` predicts, beside the same steps of the host's own model: is the estimate within a fifth?"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from clear_core.flux import PIXELS_PER_TOKEN, TEXT_TOKENS
from devtools.inprocess import pack_module
from devtools.models import FULL_SIZE, run_forward

from . import step
from .timing import wait

NARROW: step.Shape = {**FULL_SIZE, "hidden_size": 768, "num_heads": 6, "depth": 2, "depth_single_blocks": 3}
"""A quarter of FLUX.1's width, and five blocks."""


@dataclass(frozen=True, slots=True)
class Task:
    """side: image tokens. bands: 0 without CLEAR Multi-GPU."""

    side: int
    radius: int
    bands: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One step. ratio: predicted over measured."""

    channels: int
    blocks: int
    pixels: int
    radius: int
    bands: int
    predicted: float
    measured: float
    ratio: float


def plan(device: torch.device) -> list[tuple[step.Shape, list[Task]]]:
    """Models, and what is run with each."""
    if device.type == "cuda":
        tasks = [Task(64, 16), Task(128, 8), Task(128, 16), Task(128, 16, 8), Task(256, 16), Task(256, 16, 32)]
        return [(FULL_SIZE, tasks)]
    narrow = [Task(32, 8), Task(48, 8), Task(48, 16), Task(48, 16, 4), Task(64, 8), Task(64, 24)]
    return [(NARROW, narrow), (step.full_width(device), [Task(32, 8), Task(48, 8), Task(48, 16), Task(48, 16, 3)])]


def about(device: torch.device) -> str:
    """How time is taken."""
    if device.type == "cuda":
        return "Wall-clock time."
    return f"Processor time of one thread, which other programs change little; load now {load():.1f}."


def load() -> float:
    """Of the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def measure(device: torch.device, shape: step.Shape, tasks: list[Task], repeats: int) -> Iterator[Row]:
    """The predictions, then all steps in turn."""
    clock: Callable[[], float] = time.perf_counter
    if device.type == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    bench = step.Bench(device, shape)
    models = [step.patched(bench.model, task.radius, task.bands, str(device)) for task in tasks]
    predicted = _predictions(models, tasks, clock)
    given = [step.inputs(task.side, device) for task in tasks]
    taken: list[list[float]] = [[] for _ in tasks]
    for _ in range(repeats):
        for index, model in enumerate(models):
            wait(device)
            started = clock()
            run_forward(model, **given[index])
            wait(device)
            taken[index].append(clock() - started)
    blocks = shape["depth"] + shape["depth_single_blocks"]
    for task, guess, times in zip(tasks, predicted, taken, strict=True):
        real = statistics.median(times)
        pixels = task.side * PIXELS_PER_TOKEN
        yield Row(shape["hidden_size"], blocks, pixels, task.radius, task.bands, guess, real, guess / real)


def _predictions(models: list[Any], tasks: list[Task], clock: Callable[[], float]) -> list[float]:
    """As the panel and the report make them, from one measurement; the text is as long as in the runs."""
    pack = {
        name: pack_module(path)
        for name, path in {
            "measure": "nodes.host.measure",
            "model": "nodes.host.flux_model",
            "cost": "nodes.insight.cost",
            "show": "clear_core.show.cost",
            "estimate": "clear_core.show.estimate",
        }.items()
    }
    infos = [pack["model"].model_info(model) for model in models]
    window = infos[0].clear.window
    timings = pack["measure"].measure(
        infos[0].subject.model, "auto", window, lambda share: None, lambda: None, clock=clock
    )
    found = []
    for task, info in zip(tasks, infos, strict=True):
        options = pack["cost"].options_of(info.clear, info.double, info.single, TEXT_TOKENS)
        side = task.side * PIXELS_PER_TOKEN
        grid = pack["show"].token_grid(side, side)
        bands = pack["show"].band_plan(grid, options, task.bands) if task.bands else None
        found.append(pack["estimate"].step_seconds(timings, info.subject, options, side, side, bands))
    return found


def table(rows: list[Row]) -> str:
    lines = [
        f"{'width':>6} {'blocks':>7} {'image':>6} {'radius':>7} {'bands':>6} {'predicted s':>12} {'ran s':>9} ratio"
    ]
    for row in rows:
        lines.append(
            f"{row.channels:>6} {row.blocks:>7} {row.pixels:>6} {row.radius:>7} {row.bands or '':>6} "
            f"{row.predicted:>12.3f} {row.measured:>9.3f} {row.ratio:>5.2f}"
        )
    worst = max(rows, key=lambda row: max(row.ratio, 1 / row.ratio))
    return "\n".join([*lines, "", f"farthest off: {worst.ratio:.2f} at {worst.pixels} px, radius {worst.radius}"])
