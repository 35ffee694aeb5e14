"""Makes the files of a training set that are not there yet, a prompt's text embeddings and a latent in each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import comfy.model_management
import folder_paths
from comfy.utils import ProgressBar
from torch import Tensor

from ...clear_core.distill.samples import Sample, SampleError, TrainingSet, latent_shape, write_sample
from ..options.training_set import SetOptions
from .training_images import LeftOut, UnusableImageError
from .training_samples import Shape, encoded, tensors_of

_FOLDER: Final = "clear_training_sets"
_AT_ONCE: Final = (
    32  # prompts encoded in turn (4 MB each for 256 tokens), so that models change places in memory less often
)

OnStep = Callable[[int], None]
Made = tuple[Tensor, Tensor, bool]
"""mean and std [1, channels, height, width], and whether std is what it should be."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sample that the set should have. source: its name for a user. key: of all that it depends on.

    latent: makes it from the CONDITIONING of the prompt, and calls a function with the number of steps done. Raises
    UnusableImageError.
    """

    source: str
    prompt: str
    key: str
    latent: Callable[[Any, OnStep], Made]


class Making:
    """One run. files: of the set so far, in order. left_out: what is not in it."""

    def __init__(self, options: SetOptions, clip: Any, shape: Shape, steps: int, say: Callable[[str], None]) -> None:
        """shape: of every latent. steps: of making one. say: shows a user how far it is."""
        self.files: list[Path] = []
        self.left_out: list[LeftOut] = []
        self._options, self._clip, self._shape, self._steps, self._say = options, clip, shape, steps, say
        self._folder = Path(folder_paths.get_output_directory()) / _FOLDER / options.name
        # A sample keeps its file when others come before it: the key is at the end of the name.
        self._here = {path.stem.rpartition("_")[2]: path for path in self._folder.glob("*.safetensors")}
        self._made = self._without_std = 0

    def run(self, wanted: Sequence[Wanted]) -> None:
        """Raises ValueError for a wrong autoencoder or text encoder, RuntimeError where a file cannot be written."""
        bar = ProgressBar(len(wanted) * self._steps)
        for start in range(0, len(wanted), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(wanted)))
            conditionings = {n: self._encoded(wanted[n]) for n in numbers if not self._is_whole(wanted[n])}
            for n in numbers:
                comfy.model_management.throw_exception_if_processing_interrupted()
                one, done = wanted[n], n * self._steps
                path = self._here.get(one.key, self._folder / f"{n:05}_{one.key}.safetensors")
                if n in conditionings:
                    self._say(f"{n + 1} of {len(wanted)}: {one.source}")
                    try:
                        # Popped: its memory is free when the sample is written.
                        self._make(
                            one, path, conditionings.pop(n), lambda step, done=done: bar.update_absolute(done + step)
                        )
                    except UnusableImageError as error:
                        self.left_out.append(LeftOut(one.source, str(error)))
                        continue
                self.files.append(path)
                bar.update_absolute(done + self._steps)

    def _is_whole(self, one: Wanted) -> bool:
        path = self._here.get(one.key)
        try:
            return path is not None and latent_shape(path) == self._shape
        except SampleError:
            return False

    def _encoded(self, one: Wanted) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._say(f"text of {one.source}")
        return encoded(self._clip, one.prompt)

    def _make(self, one: Wanted, path: Path, conditioning: Any, on_step: OnStep) -> None:
        mean, std, distributed = one.latent(conditioning, on_step)
        if tuple(mean.shape[1:]) != self._shape:
            raise ValueError(
                f"The latent of {one.source} has the shape {tuple(mean.shape[1:])}, that of FLUX is {self._shape}. "
                "Connect the VAE of the model that is distilled."
            )
        sample = Sample(mean[0], std[0], tensors_of(conditioning), one.prompt)
        _check_numbers(sample, one.source)
        about = {"source": one.source, "width": str(self._options.width), "height": str(self._options.height)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_sample(path, sample, about)
        except OSError as error:
            raise RuntimeError(self._not_saved(path, error)) from error
        self._made += 1
        self._without_std += not distributed

    def _not_saved(self, path: Path, error: OSError) -> str:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else os.strerror(error.errno) if error.errno else str(error)
        return (
            f"{path} is not saved: {why}. {len(self.files)} samples are there. Make room, or start ComfyUI with "
            "--output-directory on another disk; the next run goes on where this one stopped."
        )

    def result(self) -> tuple[TrainingSet, str]:
        """The set and a report."""
        options, count = self._options, len(self.files)
        lines = [
            f"{count} samples of {options.width} x {options.height} in {self._folder}: {self._made} made, "
            f"{count - self._made} there before"
        ]
        if self._without_std:
            lines.append(
                f"{self._without_std} without deviation, std is 0: the VAE gave a latent only, or encoded in tiles"
            )
        if self.left_out:
            lines.append(f"{len(self.left_out)} left out:")
            lines += [f"{one.name}: {one.reason}" for one in self.left_out]
        others = len(set(self._here.values()) - set(self.files))
        if others:
            lines.append(f"{others} other samples in that folder, of other settings, are not in this set")
        return TrainingSet(self._folder, tuple(self.files)), "\n".join(lines)


def _check_numbers(sample: Sample, source: str) -> None:
    """Raises ValueError for a sample that would spoil the weights trained on it."""
    for name, tensor in {"latent": sample.mean, **sample.conditioning}.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"The {name} of {source} has values that are not numbers: they overflow in their dtype. Start ComfyUI "
                "with --fp32-vae for images, --bf16-unet for generated latents, --fp32-text-enc for text."
            )
