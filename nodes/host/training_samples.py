"""What one training sample is made of: a prompt's text embeddings, an image's latent, a sampled latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

from ...clear_core.distill.samples import TEXT
from .flux_model import FLUX_1, transformer_of

CHANNELS, PIXELS = 16, 8
"""Of FLUX.1's latent: channels, and pixels that a cell covers each way."""

GUIDANCE: Final = 3.5
_LEAST_LOGVAR, _MOST_LOGVAR = -30.0, 20.0  # as ComfyUI's own distribution takes them


def check_model(model: Any) -> None:
    """Raises ValueError unless a MODEL is one that there can be distilled weights for."""
    family = transformer_of(model)[1]
    if family != FLUX_1:
        raise ValueError(f"model is {family}; training samples are made with {FLUX_1}. Connect a {FLUX_1} model.")


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
    """pixels: [1, height, width, 3], 0 to 1. mean and std of the latent, float32 [1, channels, height / 8, width / 8].

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
    model: Any, conditioning: Any, width: int, height: int, steps: int, seed: int, on_step: Callable[[int], None]
) -> Tensor:
    """The latent of KSampler with euler, simple, cfg 1 and guidance 3.5: float32 [1, 16, height / 8, width / 8].

    on_step: called with the number of steps done.
    """
    tokens, others = conditioning[0]
    positive = [[tokens, {**others, "guidance": GUIDANCE}]]
    latent = torch.zeros(1, CHANNELS, height // PIXELS, width // PIXELS)
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
