"""The small FLUX and its dense pictures, made once for all tests of this folder."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from devtools import checkpoints
from devtools.small_flux import files, scenes, text

from host.pictures.studio import CHOSEN, Studio


@pytest.fixture(scope="session")
def studio(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    import comfy.sd

    _, vae = files.load()
    # Whatever the device: pictures are compared far below what bfloat16 leaves alone.
    model = comfy.sd.load_diffusion_model(str(files.FOLDER / files.FLUX), model_options={"dtype": torch.float32})
    models = tmp_path_factory.mktemp("models")
    checkpoints.make_clip_l(models)
    _, held_out = scenes.split()
    clip = text.load_clip(models / checkpoints.CLIP_L)
    texts = text.encode(clip, [held_out[index].prompt for index in CHOSEN])
    with suppress(OSError):  # a quarter of a gigabyte; Windows keeps a file that is mapped
        (models / checkpoints.CLIP_L).unlink()
    return Studio(model, vae, texts)


@pytest.fixture(scope="session")
def dense(studio: Studio) -> Tensor:
    return studio.pictures(studio.model)
