"""Trains a student with the pack's own distillation and measures it against the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clear_core.distill.settings import GUIDANCE

from ..inprocess import node_class, pack_module, run_node
from ..models import run_forward
from ..small_flux import gallery, scenes
from ..small_flux.pool import draw_scene
from ..small_flux.text import Texts
from .variants import Variant

_TOGETHER = 20  # samples, between one that is stopped and what it has kept
_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
Row = dict[str, float]
Probe = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a velocity: noisy latents, sigma, context, pooled text."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How much a comparison takes. steps, batch, samples: of a student's training. pictures: of held-out prompts.
    probes: scenes on which velocities are compared."""

    steps: int
    batch: int
    samples: int
    pictures: int
    probes: int


FULL = Measure(steps=300, batch=4, samples=400, pictures=60, probes=16)
QUICK = Measure(steps=4, batch=1, samples=4, pictures=2, probes=2)


def applied(model: Any, weights: Any, **inputs: Any) -> Any:
    """A MODEL after Apply CLEAR Attention. weights: None for the model's own."""
    return run_node(node_class("apply", "CLEARApply"), model=model, weights=weights, **inputs)[0]


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Matrix products in bfloat16 where the CPU has them, of values that stay float32: a quarter less time."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_lora(model: Any, lora: Mapping[str, Tensor]) -> Any:
    """A MODEL after Load LoRA. lora: what its file has."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


class Bench:
    """One dense model with its pictures; students are measured on the same prompts and the same noise."""

    def __init__(
        self,
        model: Any,
        vae: Any,
        training: tuple[Sequence[scenes.Description], Texts],
        held_out: tuple[Sequence[scenes.Description], Texts],
        measure: Measure,
        folder: Path,
    ) -> None:
        self._model, self._vae, self._measure, self._folder = model, vae, measure, folder
        self._training, self._held_out = training, held_out
        self._chosen = range(min(measure.pictures, len(held_out[0])))

    @cached_property
    def images(self) -> Tensor:
        """Of the dense model: [pictures, height, width, 3]."""
        return self._pictures(self._model)

    @cached_property
    def _probes(self) -> list[tuple[Probe, Tensor]]:
        """Each with the dense model's velocity."""
        probes = [self.probe(index) for index in range(self._measure.probes)]
        return [(probe, self.velocity(self._model, *probe)) for probe in probes]

    def dense(self) -> Row:
        """The scores of the dense model itself."""
        return self._scores(self.images)

    def row(self, variant: Variant, say: Callable[[str], None]) -> tuple[Row, Tensor]:
        """The student's scores, and its pictures: [pictures, height, width, 3]."""
        return self.compared(self._student(variant, say), dense=variant.dense)

    def compared(self, model: Any, *, dense: float = 0.0) -> tuple[Row, Tensor]:
        """The scores of any MODEL beside the dense one, and its pictures: [pictures, height, width, 3].

        dense: the share of the steps that the dense model samples before it.
        """
        images = self._pictures(model, first=(self._model, round(dense * gallery.STEPS)) if dense else None)
        row = self._scores(images)
        row["psnr"] = gallery.psnr(images, self.images)
        errors = [(self.velocity(model, *probe) - wanted).square().mean() for probe, wanted in self._probes]
        row["loss"] = float(torch.stack(errors).mean())
        return row, images

    def _student(self, variant: Variant, say: Callable[[str], None]) -> Any:
        start = {"start_percent": variant.start_percent}
        window = {"radius": variant.radius, "down_factor": variant.down_factor}
        if not variant.trained:
            return applied(self._model, None, **window, **start)
        result = self._distilled(variant.student, say)
        if result.weights is None:
            return applied(with_lora(self._model, load_file(result.file)), None, **window, **start)
        return applied(self._model, result.weights, **start)

    def _distilled(self, variant: Variant, say: Callable[[str], None]) -> Any:
        """A `nodes.host.distill.job.Result`."""
        jobs, settings = pack_module("nodes.host.distill.job"), pack_module("clear_core.distill.settings")
        asked = settings.Settings(**variant.settings(self._measure.steps, self._measure.batch))
        job = jobs.Job(variant.name, asked, save_every=50, folder=self._folder / "students")

        def step(session: Any, trained: Any, point: Any) -> None:
            if point.step % 50 == 0:
                say(f"{variant.name}: step {point.step} of {asked.steps}, loss {point.losses['loss']:.4g}")

        with _bfloat16_products():
            result, _, _ = job.run(self._model, self.samples(), None, step)
        return result

    def samples(self) -> Any:
        """A training set of the dense model's own pictures, as the authors trained: its guidance is in them."""
        module = pack_module("clear_core.distill.samples")
        folder = self._folder / "samples"
        descriptions, texts = self._training
        chosen = range(min(self._measure.samples, len(descriptions)))
        made = [folder / f"{number:05d}.safetensors" for number in chosen]
        folder.mkdir(parents=True, exist_ok=True)
        missing = [number for number in chosen if not made[number].is_file()]
        for at in range(0, len(missing), _TOGETHER):
            numbers = missing[at : at + _TOGETHER]
            latents = gallery.latents(self._model, texts, numbers, seed=4)
            context, pooled = texts.features(torch.tensor(numbers))
            for i, number in enumerate(numbers):
                given = {"cross_attn": context[i], "pooled_output": pooled[i]}
                sample = module.Sample(
                    latents[i], torch.zeros(1).expand(16, 32, 32), given, descriptions[number].prompt
                )
                module.write_sample(made[number], sample, {"source": "generated by the model"})
        return module.TrainingSet(folder, tuple(made))

    def _latent(self, description: scenes.Description, seed: int, number: int) -> Tensor:
        """[16, 32, 32], in the units of ComfyUI's LATENT."""
        image = draw_scene(description, seed, number, 256).movedim(0, -1)[None]
        with torch.inference_mode():
            return self._vae.encode(image)[0].clone().float()

    def _pictures(self, model: Any, first: tuple[Any, int] | None = None) -> Tensor:
        samples = gallery.latents(model, self._held_out[1], self._chosen, first=first)
        return gallery.decoded(self._vae, samples).float()

    def _scores(self, images: Tensor) -> Row:
        return gallery.judged(images, [self._held_out[0][i] for i in self._chosen])

    def probe(self, index: int) -> Probe:
        """Noisy latents of one held-out scene at each sigma, with its text."""
        descriptions, texts = self._held_out
        clean = self._model.model.process_latent_in(self._latent(descriptions[index], 6, index))
        sigma = torch.tensor(_SIGMAS)
        noise = torch.randn(len(sigma), *clean.shape, generator=torch.Generator().manual_seed(index))
        part = sigma[:, None, None, None]
        context, pooled = texts.features(torch.tensor([index]))
        noisy = (1 - part) * clean + part * noise
        return noisy, sigma, context.expand(len(sigma), -1, -1), pooled.expand(len(sigma), -1)

    def velocity(self, model: Any, noisy: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """Of a MODEL for a probe."""
        return run_forward(model, noisy, sigma, context, pooled, torch.full_like(sigma, GUIDANCE)).float().cpu()
