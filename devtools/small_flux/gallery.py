"""Pictures of the small model through ComfyUI's own sampling and decoding, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models import sample
from .scenes import Description
from .scorer import Score, score
from .text import Texts

STEPS = 20
_BATCH = 10  # of 256 pixels; of larger ones as many as have that many pixels


def latents(
    model: Any,
    texts: Texts,
    chosen: Sequence[int],
    *,
    side: int = 256,
    seed: int = 0,
    steps: int = STEPS,
    start: Tensor | None = None,
    denoise: float = 1.0,
    first: tuple[Any, int] | None = None,
) -> Tensor:
    """One for each chosen prompt: [chosen, 16, side / 8, side / 8]. Euler, no CFG, noise from `seed` + the prompt.

    start: latents of that shape to be sampled again, of which `denoise` is noised. first: another MODEL for so many of
    the first steps.
    """
    out = []
    size = max(1, _BATCH * 256**2 // side**2)
    for at in range(0, len(chosen), size):
        part = torch.tensor(chosen[at : at + size])
        given = None if start is None else start[at : at + size]
        noise = torch.stack([_noise(seed, int(number), side) for number in part])
        context, pooled = texts.features(part)
        prompt = {"context": context, "pooled_text": pooled}
        with torch.inference_mode():
            found = sample(
                model,
                side // 8,
                side // 8,
                steps=steps,
                seed=seed,
                prompt=prompt,
                noise=noise,
                start=given,
                denoise=denoise,
                first=first,
            )
        out.append(found.cpu())
    return torch.cat(out)


def decoded(vae: Any, samples: Tensor) -> Tensor:
    """[batch, height, width, 3], 0 to 1."""
    with torch.inference_mode():
        return torch.cat([vae.decode(one[None]).cpu() for one in samples])


def scores(images: Tensor, descriptions: Sequence[Description]) -> list[Score]:
    """images: [batch, height, width, 3]."""
    pairs = zip(images.float().numpy(), descriptions, strict=True)
    return [score(image, description) for image, description in pairs]


def psnr(images: Tensor, others: Tensor) -> float:
    """The mean over pictures, in dB; of each, 100 at most. images, others: [batch, height, width, 3], 0 to 1."""
    error = (images - others).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


def judged(images: Tensor, descriptions: Sequence[Description]) -> dict[str, float]:
    """The values of their `Summary`. images: [batch, height, width, 3], one for each description."""
    return asdict(Summary.of(scores(images, descriptions)))


@dataclass(frozen=True, slots=True)
class Summary:
    """Of many pictures: shares of those that are right, and the mean coherence."""

    pictures: int
    right: float
    count: float
    colour: float
    thing: float
    ground: float
    sky: float
    light: float
    coherence: float

    @classmethod
    def of(cls, found: Sequence[Score]) -> Summary:
        names = ("right", "count", "colour", "thing", "ground", "sky", "light", "coherence")
        return cls(len(found), **{name: float(np.mean([getattr(one, name) for one in found])) for name in names})


def sheet(images: Tensor, columns: int, path: Path) -> None:
    """All pictures, from the top left, as one PNG. images: [batch, height, width, 3]."""
    import PIL.Image

    rows = [torch.cat(list(images[at : at + columns]), 1) for at in range(0, len(images), columns)]
    width = rows[0].shape[1]
    whole = torch.cat([torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows])
    PIL.Image.fromarray((whole.clamp(0, 1) * 255 + 0.5).byte().numpy()).save(path)


def _noise(seed: int, number: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed << 20) + number)
    return torch.randn(16, side // 8, side // 8, generator=generator)
