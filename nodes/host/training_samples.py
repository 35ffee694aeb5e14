"""What one training sample is made of: a prompt's text embeddings, an image's latent, a sampled latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

from ...clear_core.distill.samples import TEXT
from ...clear_core.distill.settings import GUIDANCE
from ...clear_core.flux import CHROMA, FAMILIES, FLUX_1, FLUX_2
from .flux_model import transformer_of

_CELL: Final[Mapping[int, int]] = MappingProxyType({16: 8, 128: 16})
"""By the channels of a latent, of FLUX.1 and Chroma or of FLUX.2: pixels that a cell covers each way."""

Shape = tuple[int, int, int]
"""channels, height, width of a latent."""

_LEAST_LOGVAR, _MOST_LOGVAR = -30.0, 20.0  # as ComfyUI's own distribution takes them


def shape_of_model(model: Any, width: int, height: int) -> Shape:
    """Of a MODEL's latents for an image size. Raises ValueError unless it is one that weights can be distilled for."""
    family = transformer_of(model)[1]
    if family not in FAMILIES:
        raise ValueError(
            f"model is {family}; training samples are made with {', '.join(FAMILIES)}. Connect one of them."
        )
    return _shape(model.get_model_object("latent_format").latent_channels, width, height)


def shape_of_vae(vae: Any, width: int, height: int) -> Shape:
    """Of a VAE's latents for an image size. Raises ValueError unless it is that of such a model."""
    if vae.latent_channels not in _CELL:
        raise ValueError(
            f"vae makes latents of {vae.latent_channels} channels; those of {FLUX_1} and {CHROMA} have 16, those of "
            f"{FLUX_2} 128. Connect the VAE of the model that is distilled."
        )
    return _shape(vae.latent_channels, width, height)


def _shape(channels: int, width: int, height: int) -> Shape:
    cell = _CELL[channels]
    return channels, height // cell, width // cell


def encoded(clip: Any, prompt: str) -> Any:
    """A prompt as CONDITIONING of one entry. Raises ValueError without a text encoder, or where it has a schedule."""
    if clip is None:
        raise ValueError("clip is None: the checkpoint has no text encoder. Load one with DualCLIPLoader.")
    made = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if len(made) != 1:
        raise ValueError(
            f"clip encodes a prompt as {len(made)} parts of the steps, by its hooks; a sample has one. Connect a CLIP "
            "without them."
        )
    return made


def tensors_of(conditioning: Any) -> dict[str, Tensor]:
    """The tensors of a CONDITIONING's entry by name, without the batch dimension."""
    tokens, others = conditioning[0]
    found = {TEXT: tokens, **others}
    return {name: value[0] for name, value in found.items() if isinstance(value, Tensor) and value.ndim}


def distribution(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor, bool]:
    """pixels: [1, height, width, 3], 0 to 1. mean and std of the latent, float32 [1, channels, rows, columns].

    The last value tells whether the autoencoder gave a distribution; if not, mean is the latent and std is 0.
    """
    seen: list[Tensor] = []
    regularization = getattr(getattr(vae, "first_stage_model", None), "regularization", None)
    hook = None
    if regularization is not None:
        # The host's own encode does the rest: loading, dtypes, tiles where memory is short.
        hook = regularization.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    try:
        mean = vae.encode(pixels).float().cpu()
    finally:
        if hook is not None:
            hook.remove()
    if len(seen) == 1 and seen[0].shape[1] == 2 * mean.shape[1]:
        given, logvar = seen[0].float().cpu().chunk(2, dim=1)
        # Not so in tiles, or where an autoencoder does more to a latent than to take the mean.
        if torch.equal(given, mean):
            return mean, torch.exp(0.5 * logvar.clamp(_LEAST_LOGVAR, _MOST_LOGVAR)), True
    return mean, torch.zeros_like(mean), False


def sampled(
    model: Any, conditioning: Any, shape: Shape, steps: int, seed: int, on_step: Callable[[int], None]
) -> Tensor:
    """The latent of KSampler with euler, simple, cfg 1 and guidance 3.5: float32 [1, *shape].

    on_step: called with the number of steps done.
    """
    tokens, others = conditioning[0]
    positive = [[tokens, {**others, "guidance": GUIDANCE}]]
    latent = torch.zeros(1, *shape)
    noise = comfy.sample.prepare_noise(latent, seed)

    def after(step: int, *_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        on_step(step + 1)

    made = comfy.sample.sample(
        model,
        noise,
        steps,
        1.0,
        "euler",
        "simple",
        positive,
        positive,  # not computed with cfg 1
        latent,
        callback=after,
        disable_pbar=True,
        seed=seed,
    )
    return made.float().cpu()
