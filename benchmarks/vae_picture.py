"""A picture decoded whole, in tiles and in strips; the differences amplified."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from .vae_strips import CELL, Bench

_SIDE, _TILE, _OVERLAP = 64, 32, 8  # cells: 512 pixels in tiles of 256, as VAE Decode (Tiled) would cut it
_GAP, _TITLE = 10, 30  # pixels


def write(bench: Bench, path: Path) -> dict[str, float]:
    """Three panels: the plain decode, and the differences of tiles and strips to it, each amplified to its largest.

    Returns the largest differences, of the plain picture's range. The weights are random, so it is a pattern.
    """
    import comfy.utils

    decoder = bench.vae.first_stage_model.decoder
    blobs = torch.randn(1, 16, _SIDE // 8, _SIDE // 8, generator=torch.Generator().manual_seed(0))
    latent = interpolate(blobs, size=(_SIDE, _SIDE), mode="bicubic")
    with torch.inference_mode():
        plain: Tensor = decoder(latent)
        tiled: Tensor = comfy.utils.tiled_scale(latent, decoder, _TILE, _TILE, _OVERLAP, upscale_amount=CELL)
        strips = bench.in_strips(decoder, latent)
    low, high = plain.min(), plain.max()
    panels = {"VAE Decode": (plain - low) / (high - low)}
    largest = {}
    for name, made in (("tiles", tiled), ("strips", strips)):
        far = (made - plain).abs() / (high - low)
        largest[name] = float(far.max())
        gain = 1 / largest[name]
        panels[f"{name} - plain, x {gain:,.{0 if gain > 10 else 1}f}"] = far / far.max()
    _sheet(panels).save(path)
    return largest


def _sheet(panels: dict[str, Tensor]) -> Image.Image:
    """panels: by title, [1, 3, side, side], 0 to 1."""
    side = CELL * _SIDE
    sheet = Image.new("RGB", (len(panels) * (side + _GAP) - _GAP, side + _TITLE), "white")
    for number, (title, panel) in enumerate(panels.items()):
        left = number * (side + _GAP)
        sheet.paste(Image.fromarray((panel[0].movedim(0, -1) * 255).round().byte().numpy()), (left, _TITLE))
        ImageDraw.Draw(sheet).text((left + 4, 8), title, fill="black", font_size=16)
    return sheet
