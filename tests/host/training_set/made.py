"""Images, metadata and a small autoencoder for the tests of CLEAR Training Set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from devtools.checkpoints import AUTOENCODER, random_like

IMAGES, GENERATE = "images in a folder", "generate from prompts"
SIZE = {"width": 80, "height": 64}


def small_vae(channels: int, *, flux_2: bool = False) -> Any:
    """An autoencoder of the host's class, random, with few layers and channels. channels: of its latents.

    flux_2: four cells become one of four times the channels, normalised.
    """
    import comfy.ldm.models.autoencoder
    import comfy.sd

    config = {**AUTOENCODER, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": channels}
    if flux_2:
        engine: Any = comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig={**config, "batch_norm_latent": True}, embed_dim=channels
        )
    else:
        engine = comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": config},
            decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": config},
        )
    engine.load_state_dict(random_like(engine.state_dict()))
    made: Any = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    made.first_stage_model = engine.float().eval()
    made.downscale_ratio = made.upscale_ratio = 16 if flux_2 else 8
    made.latent_channels = 4 * channels if flux_2 else channels
    made.process_input = lambda image: image * 2.0 - 1.0
    made.patcher = type(made.patcher)(engine, made.device, made.device)
    return made


def picture(path: Path, width: int = 80, height: int = 64, **options: Any) -> Path:
    pixels = np.random.default_rng(len(path.stem)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def captioned(path: Path, prompt: str, width: int = 80, height: int = 64) -> Path:
    path.with_suffix(".txt").write_text(prompt, encoding="utf-8")
    return picture(path, width, height)


def saved_by_comfyui(path: Path, graph: Any) -> Path:
    """With a workflow's metadata, as Save Image writes it."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("prompt", graph if isinstance(graph, str) else json.dumps(graph))
    return picture(path, pnginfo=metadata)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": {key: list(v) if isinstance(v, tuple) else v for key, v in inputs.items()}}
