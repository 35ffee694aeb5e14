"""One sampling step of FLUX: the host's own model, dense and with Apply CLEAR Attention, seconds and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from clear_core.flux import PIXELS_PER_TOKEN, TEXT_TOKENS
from devtools.inprocess import import_host, node_class, run_node
from devtools.models import FULL_SIZE, flux_model, run_forward

from .peak import peaks
from .timing import medians

Shape = dict[str, Any]
"""Arguments of the host's FLUX."""


@dataclass(frozen=True, slots=True)
class Variant:
    """radius: 0 is dense. bands: on one device; 0 is without CLEAR Multi-GPU, 1 is with it and one band."""

    radius: int
    bands: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """side: image tokens a side. The first variant is what the others are held against."""

    side: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One answer. speedup: over the first variant of the same run.

    peak_gib: device memory beyond what was there before the step; None on a CPU.
    """

    pixels: int
    radius: int
    bands: int
    seconds: float
    speedup: float
    peak_gib: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def tasks(device: torch.device) -> list[Task]:
    """Dense against CLEAR."""
    radii = (0, 8, 16, 32) if device.type == "cuda" else (0, 8)
    sides = (64, 128, 256, 512) if device.type == "cuda" else (64,)
    return [Task(side, tuple(Variant(radius) for radius in radii)) for side in sides]


def band_tasks(device: torch.device) -> list[Task]:
    """What bands cost in time: none, one, two on one device, and eight where the image is large."""
    few = tuple(Variant(16, bands) for bands in (0, 1, 2))
    if device.type == "cuda":
        return [Task(128, few), Task(512, (Variant(16), Variant(16, 8), Variant(16, 32)))]
    return [Task(128, few)]


def small_tasks() -> list[Task]:
    """A model in which attention is most of a step, as it is in FLUX.1 at sizes that take too long here."""
    return [Task(128, tuple(Variant(radius) for radius in (0, 8, 16)))]


SMALL: Shape = {**FULL_SIZE, "hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 1}
TENTH: Shape = {"depth": 2, "depth_single_blocks": 4}
"""A tenth of FLUX.1's blocks."""


def full_width(device: torch.device) -> Shape:
    """FLUX.1; on a CPU two of its blocks."""
    return FULL_SIZE if device.type == "cuda" else {**FULL_SIZE, "depth": 1, "depth_single_blocks": 1}


def described(shape: Shape) -> str:
    blocks = f"{shape['depth']} double and {shape['depth_single_blocks']} single blocks"
    return f"hidden size {shape['hidden_size']}, {blocks}, random weights, {TEXT_TOKENS} text tokens"


class Bench:
    """The host's FLUX and the node, made once for all sizes."""

    def __init__(self, device: torch.device, shape: Shape) -> None:
        import_host()
        self.device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = flux_model(device=device, dtype=dtype, **shape)

    def measure(self, task: Task, repeats: int) -> Iterator[Step]:
        """Every variant, in one run."""
        given = inputs(task.side, self.device)
        models = {
            str(variant): patched(self.model, variant.radius, variant.bands, str(self.device))
            for variant in task.variants
        }
        functions = {name: lambda model=model: run_forward(model, **given) for name, model in models.items()}
        gib = {name: self._peak(function) for name, function in functions.items()}
        seconds = medians(functions, self.device, repeats)
        first = seconds[str(task.variants[0])]
        for variant in task.variants:
            name = str(variant)
            taken = seconds[name]
            yield Step(task.side * PIXELS_PER_TOKEN, variant.radius, variant.bands, taken, first / taken, gib[name])

    def _peak(self, function: Callable[[], object]) -> float | None:
        with peaks([self.device]) as found:
            function()
        return found.get(self.device)


def patched(model: Any, radius: int, bands: int, devices: str) -> Any:
    """A MODEL as the nodes make it. radius: 0 is dense. bands: 0 is without CLEAR Multi-GPU. devices: of that node."""
    if radius:
        model = run_node(node_class("apply", "CLEARApply"), model=model, weights=None, radius=radius)[0]
    if bands:
        model = run_node(node_class("multi_gpu", "CLEARMultiGPU"), model=model, devices=devices, bands=bands)[0]
    return model


def table(steps: list[Step]) -> str:
    lines = [f"{'image':>7} {'radius':>7} {'bands':>6} {'seconds':>9} {'against first':>14} {'peak GiB':>9}"]
    for step in steps:
        peak = "" if step.peak_gib is None else f"{step.peak_gib:.2f}"
        radius = step.radius or "dense"
        lines.append(
            f"{step.pixels:>7} {radius:>7} {step.bands or '':>6} {step.seconds:>9.3f} {step.speedup:>12.2f} x {peak:>9}"
        )
    return "\n".join(lines)


def inputs(side: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Of one forward of a model of FLUX.1's text and vector widths, for `run_forward`. side: image tokens a side."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    return {
        "latent": random(1, 16, side * 2, side * 2),
        "timestep": torch.full((1,), 0.6, device=device),
        "context": random(1, TEXT_TOKENS, FULL_SIZE["context_in_dim"]),
        "pooled_text": random(1, FULL_SIZE["vec_in_dim"]),
        "guidance": torch.full((1,), 3.5, device=device),
    }
