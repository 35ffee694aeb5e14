"""What goes beyond the training: larger pictures, bands, and a LoRA of the dense model on the distilled one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from clear_core.weights import LARGEST_RADIUS

from ..inprocess import node_class, run_node
from ..small_flux import files, gallery, scenes
from ..small_flux.lora import LoraRecipe, exchanged, trained_lora
from ..small_flux.model import new_model
from ..small_flux.pool import draw_scene
from ..small_flux.text import Texts
from ..small_flux.train import SIDE, spread
from .measure import Row, applied, with_lora

_AXIS = 14  # of RoPE, per head: height's and width's
_DENOISE = 0.6  # of a staged upscale


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is told that its image is larger. interpolated: all positions lie within those of training,
    as core's ScaleROPE sets them."""

    ntk: bool = False
    proportional: bool = False
    interpolated: bool = False


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "plain": Setting(),
        "ntk": Setting(ntk=True),
        "ntk, proportional": Setting(ntk=True, proportional=True),
        "interpolated": Setting(interpolated=True),
        "staged, ntk, proportional": Setting(ntk=True, proportional=True),
        "staged, interpolated": Setting(interpolated=True),
    }
)


@dataclass(frozen=True, slots=True)
class Amount:
    """pictures: of held-out prompts by side, in pixels. lora: of the LoRA. lora_scenes: that it is trained on.
    transfer: pictures with it. bands_side: of the picture in bands."""

    pictures: dict[int, int]
    lora: LoraRecipe
    lora_scenes: int
    transfer: int
    bands_side: int
    steps: int = gallery.STEPS


FULL = Amount({512: 12, 1024: 2}, LoraRecipe(), lora_scenes=128, transfer=30, bands_side=512)
QUICK = Amount({512: 1}, LoraRecipe(steps=2, batch=1), lora_scenes=2, transfer=1, bands_side=256, steps=2)


@dataclass(frozen=True, slots=True)
class Beyond:
    """The dense model and the student that are compared, on held-out prompts."""

    model: Any
    weights: Any
    """ClearWeights of the student."""
    vae: Any
    descriptions: Sequence[scenes.Description]
    texts: Texts
    amount: Amount

    def sizes(self, folder: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Names and measurements: both models at each side, in each setting."""
        for side in self.amount.pictures:
            for name in SETTINGS:
                for which in ("dense", "distilled"):
                    yield f"{side}, {which}, {name}", partial(self._size, side, which, name, folder)

    def _size(self, side: int, which: str, name: str, folder: Path) -> Row:
        chosen = range(self.amount.pictures[side])
        if name.startswith("staged"):
            samples = self._staged(which, name, chosen, side)
        else:
            samples = gallery.latents(
                self._at(side, which, name), self.texts, chosen, side=side, steps=self.amount.steps
            )
        images = gallery.decoded(self.vae, samples).float()
        gallery.sheet(images[:4], 4, folder / f"{side}_{which}_{name.replace(', ', '_')}.png")
        return gallery.judged(images, [self.descriptions[i] for i in chosen])

    def _at(self, side: int, which: str, name: str) -> Any:
        """The model in a setting for a side."""
        setting, ratio = SETTINGS[name], side / SIDE
        # NTK-aware scaling: the slowest of an axis's frequencies is stretched by the ratio of the sides.
        ntk = round(ratio ** (_AXIS / (_AXIS - 2)), 2) if setting.ntk else 1.0
        inputs = {"ntk_factor": ntk, "proportional_attention": setting.proportional}
        if which == "dense":  # under a window that covers every picture here
            model = applied(self.model, None, radius=LARGEST_RADIUS, **inputs)
        else:
            model = applied(self.model, self.weights, **inputs)
        if setting.interpolated:
            model = model.clone()
            model.model_options.setdefault("transformer_options", {}).update(spread(1 / ratio))
        return model

    def _staged(self, which: str, name: str, chosen: Sequence[int], side: int) -> Tensor:
        """At the model's own size, then each time at twice the side, noised in part."""
        small = self.model if which == "dense" else applied(self.model, self.weights)
        samples = gallery.latents(small, self.texts, chosen, steps=self.amount.steps)
        reached = SIDE
        while reached < side:
            reached *= 2
            images = gallery.decoded(self.vae, samples).float().movedim(-1, 1)
            images = torch.nn.functional.interpolate(images, (reached, reached), mode="bicubic").clamp(0, 1)
            with torch.inference_mode():
                start = torch.cat([self.vae.encode(one.movedim(0, -1)[None]) for one in images])
            samples = gallery.latents(
                self._at(reached, which, name),
                self.texts,
                chosen,
                side=reached,
                steps=max(1, round(self.amount.steps * _DENOISE)),
                start=start,
                denoise=_DENOISE,
            )
        return samples

    def bands(self) -> Row:
        """One picture in two bands of rows against the same in one piece. difference: the largest, of latents."""
        whole = applied(self.model, self.weights)
        cut = run_node(
            node_class("multi_gpu", "CLEARMultiGPU"), model=whole, devices="cpu,cpu", bands=2, text_merge="exact"
        )[0]
        first, second = (
            gallery.latents(one, self.texts, [0], side=self.amount.bands_side, steps=self.amount.steps)
            for one in (whole, cut)
        )
        images = [gallery.decoded(self.vae, one).float() for one in (first, second)]
        return {"difference": float((first - second).abs().max()), "psnr": gallery.psnr(*images)}

    def transfer(
        self, models: Path, training: Sequence[scenes.Description], texts: Texts, folder: Path
    ) -> dict[str, Row]:
        """A LoRA of the dense model on the dense, the distilled and the untrained window's model.

        Scores are of pictures with their colours exchanged back; psnr is to the dense model's with the LoRA.
        """
        amount = self.amount
        prompts = [i % len(training) for i in range(amount.lora_scenes)]
        images = [exchanged(draw_scene(training[p], 8, i, SIDE).movedim(0, -1)) for i, p in enumerate(prompts)]
        with torch.inference_mode():
            latents = torch.cat([self.vae.encode(one[None]) for one in images]).clone()
        flux = new_model(0).requires_grad_(False)
        flux.load_state_dict(files.read_flux(models)[0])
        lora = trained_lora(flux, self.model.model.process_latent_in(latents).clone(), prompts, texts, amount.lora)
        dense = with_lora(self.model, lora)
        variant = self.weights.variant
        found: dict[str, Row] = {}
        expected = None
        chosen = range(amount.transfer)
        for name, model in (
            ("dense", dense),
            ("distilled", applied(dense, self.weights)),
            ("untrained", applied(dense, None, radius=variant.radius, down_factor=variant.down_factor)),
        ):
            samples = gallery.latents(model, self.texts, chosen, steps=amount.steps)
            pictures = gallery.decoded(self.vae, samples).float()
            expected = pictures if expected is None else expected
            gallery.sheet(pictures[:4], 4, folder / f"lora_{name}.png")
            found[name] = gallery.judged(exchanged(pictures), [self.descriptions[i] for i in chosen])
            if name != "dense":
                found[name]["psnr"] = gallery.psnr(pictures, expected)
        return found
