"""Latents of many scenes, drawn once and kept in memory while a model trains on them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import scenes
from .autoencoder import Coefficients

_PART = 64  # scenes that a process draws at a time


@dataclass(frozen=True, slots=True)
class Pool:
    """Scenes as a model sees them."""

    latents: Tensor
    """[scenes, 16, side / 8, side / 8], float16."""
    prompts: Tensor
    """[scenes], int64: which description each one shows."""

    def __len__(self) -> int:
        return len(self.latents)


def draw_scene(description: scenes.Description, seed: int, number: int, side: int) -> Tensor:
    """The scene with this seed and number: [3, side, side], 0 to 1."""
    random = np.random.Generator(np.random.PCG64((seed, number)))
    return torch.from_numpy(scenes.draw(scenes.Scene.of(description, random), side)).permute(2, 0, 1)


def draw_pool(
    descriptions: Sequence[scenes.Description], coefficients: Coefficients, count: int, side: int, seed: int
) -> Pool:
    """`count` scenes of these descriptions, each about as often. The same for the same seed."""
    prompts = [number % len(descriptions) for number in range(count)]
    jobs = [
        (
            coefficients,
            side,
            seed,
            [(number, descriptions[prompts[number]]) for number in range(at, min(at + _PART, count))],
        )
        for at in range(0, count, _PART)
    ]
    with multiprocessing.get_context("spawn").Pool(initializer=torch.set_num_threads, initargs=(1,)) as processes:
        latents = torch.cat([torch.from_numpy(part) for part in processes.imap(_encoded, jobs)])
    return Pool(latents, torch.tensor(prompts))


def _encoded(job: tuple[Coefficients, int, int, list[tuple[int, scenes.Description]]]) -> np.ndarray:
    coefficients, side, seed, wanted = job
    images = torch.stack([draw_scene(description, seed, number, side) for number, description in wanted])
    return coefficients.encode(images).half().numpy()
