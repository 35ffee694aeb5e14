"""A VAE over a whole image where its memory allows it, else in strips, or in tiles as the core's nodes call it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ..options.vae import AUTO, Way, way_of
from .bands.memory import RESERVE
from .vae_strips import part_that_needs_the_whole, vae_decode_strips, vae_encode_strips

TILE, OVERLAP = 1024, 128  # pixels

# What ComfyUI's `comfy.sd.VAE` counts for FLUX's autoencoder, for who has none loaded yet: elements a pixel.
_ENCODE, _DECODE = 1767, 2178


@dataclass(frozen=True, slots=True)
class VaePlan:
    """How one image passes a VAE. need: bytes for the whole of it at once. room: bytes that it can have.

    note: what follows in the text: why it cannot pass in strips, or how it did.
    """

    way: Way
    need: int
    room: int
    note: str = ""

    @property
    def text(self) -> str:
        how = {"whole": "the whole image at once", "strips": "in strips", "tiles": f"in tiles of {TILE} px"}[self.way]
        return f"{how} ({_gib(self.need)} GiB for the whole, {_gib(self.room)} GiB free){self.note}"

    @classmethod
    def of(cls, tiling: str, need: int, room: int, whole_part: str | None = None) -> VaePlan:
        """tiling: one of `TILINGS`. The host's own reserve of a device is left free.

        whole_part: of the VAE, that cannot be computed in strips.
        """
        fits = need + RESERVE <= room
        way = way_of(tiling, fits, strips=whole_part is None)
        instead = way == "tiles" and tiling == AUTO
        return cls(way, need, room, f"; not in strips: the VAE is or has a {whole_part}" if instead else "")


def _gib(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f}"


def vae_encode(vae: Any, pixels: torch.Tensor, tiling: str) -> tuple[torch.Tensor, VaePlan]:
    """pixels: [batch, height, width, channels], 0 to 1. The latent [batch, channels, height / 8, width / 8]."""
    pixels = pixels[..., :3]
    batch, height, width, channels = pixels.shape
    plan = _plan(vae, tiling, vae.memory_used_encode((batch, channels, height, width), vae.vae_dtype))
    if plan.way == "strips":
        latent, used = vae_encode_strips(vae, pixels, (), 0)
        return latent, replace(plan, note=f" {used.where}")
    if plan.way == "tiles":
        return vae.encode_tiled(pixels, tile_x=TILE, tile_y=TILE, overlap=OVERLAP), plan
    return vae.encode(pixels), plan


def vae_decode(vae: Any, latent: torch.Tensor, tiling: str) -> tuple[torch.Tensor, VaePlan]:
    """latent: [batch, channels, height, width]. The pixels, 0 to 1: [batch, 8 height, 8 width, 3]."""
    plan = _plan(vae, tiling, vae.memory_used_decode(latent.shape, vae.vae_dtype))
    if plan.way == "strips":
        image, used = vae_decode_strips(vae, latent, (), 0)
        return image, replace(plan, note=f" {used.where}")
    if plan.way == "tiles":
        ratio = vae.spacial_compression_decode()
        tile, overlap = TILE // ratio, OVERLAP // ratio
        return vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=overlap), plan
    return vae.decode(latent), plan


def vae_plan(vae: Any, width: int, height: int, tiling: str) -> VaePlan:
    """How an image of width x height pixels passes a VAE: of encoding and decoding the one that takes more."""
    ratio = vae.spacial_compression_decode()
    decoding = (1, vae.latent_channels, height // ratio, width // ratio)
    need = max(
        vae.memory_used_encode((1, 3, height, width), vae.vae_dtype), vae.memory_used_decode(decoding, vae.vae_dtype)
    )
    return _plan(vae, tiling, need)


def _plan(vae: Any, tiling: str, need: float) -> VaePlan:
    room = room_on(torch.device(vae.device), vae.patcher)
    return VaePlan.of(tiling, int(need), room, part_that_needs_the_whole(vae))


def vae_plan_here(width: int, height: int, tiling: str) -> VaePlan:
    """The same of FLUX's VAE on this machine, before one is loaded."""
    device = torch.device(comfy.model_management.vae_device())
    dtype: Any = comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float32])
    return VaePlan.of(tiling, max(_ENCODE, _DECODE) * width * height * dtype.itemsize, room_on(device))


def room_on(device: torch.device, loaded: Any = None) -> int:
    """Bytes that ComfyUI can make free on a device: on a GPU it moves other models out of the way.

    loaded: a model that has to stay, as a patcher.
    """
    free = int(comfy.model_management.get_free_memory(device))  # type: ignore[call-overload]
    if device.type == "cpu":
        return free
    others = [one for one in comfy.model_management.current_loaded_models if torch.device(one.device) == device]
    # The host keeps an entry for a while after its model is gone.
    movable = [one for one in others if one.model is not None and one.model is not loaded]
    return free + sum(int(one.model_loaded_memory()) for one in movable)
