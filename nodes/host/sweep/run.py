"""Runs a sweep: for each seed the dense image, then every cell, each on disk before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.evaluation.similarity import similarity
from ....clear_core.flux import token_grid
from ....clear_core.weights import ClearWeights, read_weights
from ...insight.contact_sheet import scaled
from ...insight.sweep_report import Sampled, Seed
from ...insight.sweep_rows import DENSE, Row
from ...options.clear import ClearSettings, resolve_settings
from ...options.sweep import Cell
from ...options.sweep_settings import NO_WEIGHTS
from ..downloads import fetched_weights
from ..machine import device_title
from ..node_text import NodeTextParts, node_text_sender
from ..patching.patch import apply_clear
from ..run_record import settings_as_used
from .job import SweepJob
from .key import Identity
from .sampling import Given, sample
from .store import SweepStore


def run_sweep(
    job: SweepJob, images: Sequence[Given], prefix: str, dynprompt: Any, node_id: str | None
) -> tuple[list[Seed], str]:
    """Sample what is not on disk yet; the results for each image and seed, and a sentence about where they are.

    images: each with a latent of one. prefix: of the files in ComfyUI's output folder. dynprompt: the prompt that runs.
    node_id: the node whose inputs these are, which shows the progress.

    Raises ValueError for what no sampling can change, before any; RuntimeError where a file cannot be written;
    ComfyUI's own exception on Cancel. What is finished stays on disk.
    """
    job.check(images)
    device = torch.device(images[0].guider.model_patcher.load_device)
    identity = Identity.of(dynprompt, node_id, device, job.weights)
    return _Sweep(job, images, identity, SweepStore(prefix), node_id).run()


Settings = tuple[ClearSettings, str] | None
"""With the name of the weights; None for the dense image."""


class _Sweep:
    def __init__(
        self, job: SweepJob, images: Sequence[Given], identity: Identity, store: SweepStore, node_id: str | None
    ) -> None:
        self._job, self._images, self._identity, self._store = job, images, identity, store
        self._node_id = node_id
        self._text = NodeTextParts(node_text_sender(node_id), 2)  # the cell, and what Apply CLEAR Attention says of it
        self._cells = len(images) * len(job.seeds) * len(job.grid.cells)
        self._pictures = self._cells + (len(images) * len(job.seeds) if job.dense else 0)
        self._sampled = self._number = 0
        self._read: tuple[str, ClearWeights] | None = None

    def run(self) -> tuple[list[Seed], str]:
        self._check_cells()
        done = [self._seed(image, seed) for image in range(len(self._images)) for seed in self._job.seeds]
        before = self._pictures - self._sampled
        return done, f"{self._store.file}: {self._sampled} sampled, {before} taken over"

    def _check_cells(self) -> None:
        """Apply CLEAR as each cell will that has to be sampled, to learn now what is wrong with it."""
        for cell in self._order():
            for image, given in enumerate(self._images):
                keys = [self._key(image, seed, cell) for seed in self._job.seeds]
                if not (self._job.reuse and all(map(self._store.has, keys))):
                    self._patched(cell, given, lambda text: None)

    def _order(self) -> list[Cell]:
        """By weights: a file is read once for each seed, and one is in memory at a time."""
        return sorted(self._job.grid.cells, key=lambda cell: cell.weights or "")

    def _seed(self, image: int, seed: int) -> Seed:
        dense = self._image(image, seed, None) if self._job.dense else None
        found = {cell: self._cell(image, seed, cell, dense[1] if dense else None) for cell in self._order()}
        return Seed(self._for_sheet(*dense) if dense else None, tuple(found[cell] for cell in self._job.grid.cells))

    def _cell(self, image: int, seed: int, cell: Cell, dense: Tensor | None) -> Sampled:
        self._number += 1
        row, pixels = self._image(image, seed, cell)
        if dense is not None and row.psnr is None:
            scores = similarity(dense, pixels, lambda _: _throw_if_cancelled())
            row = replace(row, psnr=scores.psnr, ssim=scores.ssim)
            self._store.put(row)
        return self._for_sheet(row, pixels)

    def _image(self, image: int, seed: int, cell: Cell | None) -> tuple[Row, Tensor]:
        """From the store, or sampled. cell: None for the dense image."""
        _throw_if_cancelled()
        key = self._key(image, seed, cell)
        name = self._name(image, seed, cell)
        self._text.part(1)("")
        self._text.part(0)(f"cell {self._number} of {self._cells}: {name}" if cell else name)
        return (self._store.find(key) if self._job.reuse else None) or self._made(image, seed, cell, key, name)

    def _made(self, image: int, seed: int, cell: Cell | None, key: str, name: str) -> tuple[Row, Tensor]:
        given = self._images[image]
        model, settings = given.guider.model_patcher, None
        if cell is not None:
            model, settings = self._patched(cell, given, self._text.part(1))
        pixels, seconds = sample(given, model, seed)
        if not pixels.isfinite().all():
            raise ValueError(
                f"The image of {name} has pixels that are not numbers (NaN or infinite). Leave the cell out; where a "
                "VAE in half precision is the cause, start ComfyUI with --fp32-vae."
            )
        # Compared and shown as the file has it, so that a later run, or anyone, finds the same numbers.
        file = self._store.name_of(name, key)
        pixels = self._store.save(file, pixels, self._job.metadata)
        height, width = pixels.shape[:2]
        row = Row(
            key=key,
            settings=_as_used(settings, width, height),
            image=image + 1,
            seed=seed,
            width=width,
            height=height,
            steps=given.steps,
            seconds=seconds,
            device=device_title(torch.device(model.load_device)),
            finished=time.strftime("%Y-%m-%d %H:%M:%S"),
            file=file,
        )
        self._store.put(row)  # before it is compared, which takes a while for a large image
        self._sampled += 1
        return row, pixels

    def _patched(self, cell: Cell, given: Given, show: Callable[[str], None]) -> tuple[Any, Settings]:
        weights = self._weights(cell)
        settings = resolve_settings(weights, cell.inputs)
        patched, _ = apply_clear(given.guider.model_patcher, settings, weights, show)
        return patched, (settings, weights.name if weights is not None else NO_WEIGHTS)

    def _weights(self, cell: Cell) -> ClearWeights | None:
        if cell.weights is None:
            return self._job.weights
        if self._read is None or self._read[0] != cell.weights:
            self._read = None  # its memory is free when the next one is read
            self._read = cell.weights, read_weights(fetched_weights(cell.weights, node_id=self._node_id))
        return self._read[1]

    def _key(self, image: int, seed: int, cell: Cell | None) -> str:
        shape = list(self._images[image].latent["samples"].shape)
        return self._identity.key([image, *shape], seed, cell)

    def _name(self, image: int, seed: int, cell: Cell | None) -> str:
        what = cell.label if cell is not None else DENSE
        which = f", image {image + 1}" if len(self._images) > 1 else ""
        return f"{what}{which}, seed {seed}"

    def _for_sheet(self, row: Row, pixels: Tensor) -> Sampled:
        columns = self._job.grid.width + self._job.dense
        return Sampled(scaled(pixels, columns, self._pictures), row)


def _as_used(settings: Settings, width: int, height: int) -> dict[str, Any]:
    """For the row of an image of that size in pixels."""
    if settings is None:
        return {}
    clear, weights = settings
    return {"weights": weights, **settings_as_used(clear, token_grid(width, height))}


def _throw_if_cancelled() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
