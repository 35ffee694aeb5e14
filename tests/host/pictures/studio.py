"""Pictures of the small FLUX, and how far apart two of them are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import sample
from devtools.small_flux import gallery, scenes
from devtools.small_flux.scorer import Score
from devtools.small_flux.text import Texts

CHOSEN = (4, 14)
"""Held-out prompts: two towers by a lake under a pink sky, and three balls in a striped field under a dark one. Both
are judged by more than one thing that a window can lose: a reflection or stripes, sizes, marks."""
STEPS = 10
WHOLE = 32
"""A radius over all 16 x 16 tokens of 256 pixels."""

# In dB, measured in float32 on a CPU, with a model that draws right scenes with outlines that are often wrong.
EQUAL = 100.0
"""Between pictures that only arithmetic sets apart. Measured: 138 and more, and 90 for a window that lacks nothing but
the few pairs of opposite corners (radius 20)."""
DIFFERENT = 35.0
"""Between pictures that must be seen to differ, at most. Measured: 15 to 17 for a window of radius 3, 25 to 27 for the
preset of radius 8, 27 to 30 for the ControlNet and its own window, 29 to 35 for the LoRA, of which the worse counts."""


class Studio:
    """The small FLUX with its prompts. texts: of the held-out prompts in `CHOSEN`."""

    def __init__(self, model: Any, vae: Any, texts: Texts) -> None:
        self.model, self.vae, self._texts = model, vae, texts
        _, held_out = scenes.split()
        self.descriptions = [held_out[index] for index in CHOSEN]

    def pictures(self, model: Any, **cond: Any) -> Tensor:
        """One of each prompt, [prompts, height, width, 3]. cond: what nodes would have put into the conditioning."""
        samples = [self._sampled(model, index, cond) for index in range(len(CHOSEN))]
        return gallery.decoded(self.vae, torch.cat(samples)).float()

    def prompt(self, index: int) -> dict[str, Tensor]:
        context, pooled = self._texts.features(torch.tensor([index]))
        return {"context": context, "pooled_text": pooled}

    def scores(self, pictures: Tensor) -> list[Score]:
        """Of pictures of the first prompts."""
        return gallery.scores(pictures, self.descriptions[: len(pictures)])

    def _sampled(self, model: Any, index: int, cond: dict[str, Any]) -> Tensor:
        with torch.inference_mode():
            return sample(model, 32, 32, steps=STEPS, seed=CHOSEN[index], prompt=self.prompt(index), cond=cond).cpu()


def psnr(pictures: Tensor, expected: Tensor) -> float:
    """Of the pair that is furthest apart, in dB."""
    errors = (pictures - expected).square().mean((1, 2, 3)).clamp_min(1e-20)
    return float((-10 * errors.log10()).min())


def scenery(scores: Sequence[Score]) -> list[tuple[bool, bool, bool]]:
    """Of each picture, whether its ground, sky and colour are those of the description."""
    return [(score.ground, score.sky, score.colour) for score in scores]


def own_weights(nodes_api: Any, model: Any, file: Path, nudge: float = 0.0) -> Path:
    """CLEAR weights that are the model's own, as if trained without any step. nudge: of noise, in parts of each
    tensor's own spread."""
    stored = nodes_api.module("nodes.host.distill.stored_weights").StoredWeights(model, "model")
    tensors = {}
    for number, key in enumerate(stored.names):
        tensor = stored(key).float().cpu()
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        tensors[key] = (tensor + nudge * tensor.std() * noise).contiguous()
    save_file(tensors, file)
    return file
