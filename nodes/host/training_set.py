"""The two sources of a training set: images of a folder, and a model that makes images of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch

from ...clear_core.distill.samples import TrainingSet
from ..options.training_set import LARGEST_SEED, SetOptions, encodable
from .training_files import Made, Making, OnStep, Wanted
from .training_images import ImageFile, image_folder, images_in, none_left, pixels_of
from .training_samples import distribution, sampled, shape_of_model, shape_of_vae

_FORMAT: Final = 1  # of the files; another number makes all of them anew


def set_from_images(
    options: SetOptions, clip: Any, vae: Any, folder: str, made_of: Sequence[str], say: Callable[[str], None]
) -> tuple[TrainingSet, str]:
    """Samples of the images of a folder, and a report.

    made_of: what text encoder and autoencoder are, as `upstream` describes it. say: shows a user how far it is.
    Raises ValueError for a folder without usable images and for a wrong clip or vae, RuntimeError where a sample cannot
    be saved, ComfyUI's own exception on Cancel.
    """
    width, height = options.width, options.height
    shape = shape_of_vae(vae, width, height)
    path = image_folder(folder)
    images, left_out = images_in(path, width, height)

    def latent(image: ImageFile, conditioning: Any, on_step: OnStep) -> Made:
        return distribution(vae, pixels_of(image, width, height))

    wanted = []
    for image in images:
        name, stamp = encodable(image.path.name), image.stamp
        key = _key(options, made_of, name, stamp.size, stamp.modified, image.prompt)
        wanted.append(Wanted(name, image.prompt, key, partial(latent, image)))
    making = Making(options, clip, shape, 1, say)
    making.left_out += left_out
    making.run(wanted)
    if not making.files:
        raise ValueError(none_left(path, making.left_out))
    return making.result()


def set_from_prompts(
    options: SetOptions,
    clip: Any,
    model: Any,
    prompts: Sequence[str],
    made_of: Sequence[str],
    say: Callable[[str], None],
) -> tuple[TrainingSet, str]:
    """Samples that a model makes, one of each prompt, and a report.

    The arguments and errors of `set_from_images`; made_of: what text encoder and model are.
    """
    shape = shape_of_model(model, options.width, options.height)

    def latent(seed: int, conditioning: Any, on_step: OnStep) -> Made:
        mean = sampled(model, conditioning, shape, options.steps, seed, on_step)
        return mean, torch.zeros_like(mean), True

    wanted = []
    for number, prompt in enumerate(prompts):
        seed = (options.seed + number) % (LARGEST_SEED + 1)
        key = _key(options, made_of, prompt, options.steps, seed)
        wanted.append(Wanted(f"prompt {number + 1}", prompt, key, partial(latent, seed)))
    making = Making(options, clip, shape, options.steps, say)
    making.run(wanted)
    return making.result()


def _key(options: SetOptions, made_of: Sequence[str], *parts: str | int) -> str:
    content = [_FORMAT, options.source, options.width, options.height, *made_of, *parts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
