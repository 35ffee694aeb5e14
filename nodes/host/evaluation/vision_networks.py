"""CLIP for CLIP-I and CLIP-T, and DINOv2, as ComfyUI loads and runs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch
from safetensors import safe_open
from torch import Tensor

from ....clear_core.evaluation.measures import Measure, NotAvailableError
from ....clear_core.evaluation.metrics import CLIP, DINO, TEXT
from .weights import Files

_WIDTHS = {CLIP: 768, DINO: 1024}
_TEXT_WIDTH = 768
_TOGETHER = 8  # images; DINOv2 has 1370 tokens of each


def images(files: Files, kind: str) -> Measure:
    """The embedding of images, of CLIP or DINO. Raises NotAvailableError.

    Each image is scaled to the network's side, its middle taken: bicubic, as ComfyUI's CLIP Vision Encode with `crop`.
    """
    path = files.path(kind)

    @cache  # loaded when the first rows are computed: none are where all are kept
    def network() -> Any:
        loaded = comfy.clip_vision.load(str(path))
        if loaded is None:
            raise NotAvailableError(f"ComfyUI's CLIP vision loader does not know the network in {path}. Update ComfyUI")
        return loaded

    def rows(batch: Sequence[Tensor]) -> Tensor:
        side = network().image_size
        # The host normalises in `encode_image`; here a mean of 0 and a deviation of 1 leave pixels, all of one size.
        fitted = [
            comfy.clip_vision.clip_preprocess(image[None] / 255, side, mean=[0.0] * 3, std=[1.0] * 3) for image in batch
        ]
        pixels = torch.cat(fitted).movedim(1, -1)
        found = torch.cat(
            [network().encode_image(part)["image_embeds"].float().cpu() for part in pixels.split(_TOGETHER)]
        )
        return _numbers(found, path)

    return Measure(f"{files.identity(kind)}, {_dtype()}", _WIDTHS[kind], rows)


def texts(files: Files) -> Measure:
    """CLIP's embedding of prompts; weights in brackets are not parsed, and what is beyond 77 tokens is left out."""
    # Not at the top: it brings torchaudio, which only a running ComfyUI needs to have.
    from comfy.sd import load_text_encoder_state_dicts

    path = files.path(CLIP)

    @cache
    def clip() -> Any:
        with safe_open(str(path), framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(("text_model.", "text_projection."))]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        return load_text_encoder_state_dicts([tensors])

    def rows(prompts: Sequence[str]) -> Tensor:
        comfy.model_management.load_models_gpu([clip().patcher])
        encoder = clip().cond_stage_model
        encoder.set_clip_options({"projected_pooled": True})  # a checkpoint's CLIP-L gives it before the projection
        tokens = (clip().tokenize(prompt, disable_weights=True) for prompt in prompts)
        found = torch.cat([encoder.encode_token_weights(one)[1].float().cpu() for one in tokens])
        return _numbers(found, path)

    return Measure(f"{files.identity(CLIP)}, {TEXT}, {_dtype()}", _TEXT_WIDTH, rows)


def _dtype() -> str:
    """Of the weights; ComfyUI computes in float32 with them."""
    device = comfy.model_management.text_encoder_device()
    return str(comfy.model_management.text_encoder_dtype(device)).removeprefix("torch.")


def _numbers(rows: Tensor, path: Path) -> Tensor:
    if not rows.isfinite().all():
        raise NotAvailableError(
            f"{path.name} gave values that are not numbers: they overflow in {_dtype()}. Start ComfyUI with "
            "--fp32-text-enc"
        )
    return rows
