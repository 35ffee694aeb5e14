"""One sampling run as the core's SamplerCustomAdvanced makes it, with its time."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...options.vae import AUTO
from ..machine import synchronize
from ..vae import vae_decode

_KEY = "clear_sweep"


@dataclass(frozen=True, slots=True)
class Given:
    """What the sockets got, for one image. latent: with a batch of one."""

    guider: Any
    sampler: Any
    sigmas: Tensor
    latent: Mapping[str, Any]
    vae: Any

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True, slots=True)
class _Noise:
    """What RandomNoise gives."""

    seed: int

    def generate_noise(self, latent: Mapping[str, Any]) -> Tensor:
        made: Any = comfy.sample.prepare_noise(latent["samples"], self.seed, latent.get("batch_index"))
        return made


def sample(given: Given, model: Any, seed: int) -> tuple[Tensor, float]:
    """The decoded image [height, width, 3], 0 to 1, and the seconds of the sampler's steps.

    model: takes the place of the guider's. Loading it, patching its weights and the VAE are not timed.
    """
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    times: list[float] = []
    guider = copy.copy(given.guider)
    guider.model_patcher = _timed(model, times)
    guider.model_options = guider.model_patcher.model_options
    out = SamplerCustomAdvanced.execute(_Noise(seed), guider, given.sampler, given.sigmas, given.latent)
    image, _ = vae_decode(given.vae, out.args[0]["samples"], AUTO)
    return image[0, ..., :3], sum(times)


def singles(latent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each image of a batch by itself, with the noise that it has in the batch; as the core's LatentFromBatch."""
    samples = latent["samples"]
    if len(samples) == 1:
        return [dict(latent)]
    indices = latent.get("batch_index", range(len(samples)))
    mask = latent.get("noise_mask")
    found = []
    for i in range(len(samples)):
        one = {**latent, "samples": samples[i : i + 1], "batch_index": [indices[i]]}
        if mask is not None and len(mask) > 1:
            one["noise_mask"] = mask[i % len(mask) : i % len(mask) + 1]
        found.append(one)
    return found


def _timed(model: Any, times: list[float]) -> Any:
    """A clone that adds the seconds of each run of the sampler to `times`."""
    device = torch.device(model.load_device)

    def clear_timer(executor: Any, *args: Any, **kwargs: Any) -> Any:
        synchronize(device)
        start = time.perf_counter()
        out = executor(*args, **kwargs)
        synchronize(device)
        times.append(time.perf_counter() - start)
        return out

    timed = model.clone()
    timed.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, _KEY, clear_timer)
    return timed
