"""An evaluation from a node or a command: folders as a user names them, networks, images, progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ....clear_core.evaluation.folders import Evaluation, Opener, evaluate
from ....clear_core.evaluation.measures import UnreadableError, Watch
from ....clear_core.evaluation.metrics import CLIP, DINO, INCEPTION, LPIPS, TEXT
from ....clear_core.evaluation.rows import Rows
from ....clear_core.evaluation.table import write
from ..files import written_path
from ..training_images import UnusableImageError, folder_named, rgb_image
from .torchvision_networks import inception, lpips
from .vision_networks import images, texts
from .weights import Files

FOLDER: Final = "clear_evaluation"
"""Below ComfyUI's output folder: tables that are saved, and `rows`, what is kept of images that were measured."""


class NodeWatch:
    """Shows how far it is on a node, and ends it on Cancel. say: shows a text on the node."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._bar = say, ProgressBar(1)

    def poll(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def step(self, what: str, done: int, of: int) -> None:
        self._bar.update_absolute(done, max(of, 1))
        self._say(f"{what}: {done:,} of {of:,}")


def evaluate_folders(
    original: Path,
    folders: Sequence[Path],
    metrics: Sequence[str],
    prompts: Path | None,
    files: Files,
    watch: Watch,
    kept: Path | None = None,
) -> Evaluation:
    """As `clear_core.evaluation.folders.evaluate`. kept: where rows are kept; below the output folder for None."""
    openers: dict[str, Opener] = {
        INCEPTION: partial(inception, files),
        LPIPS: partial(lpips, files),
        CLIP: partial(images, files, CLIP),
        DINO: partial(images, files, DINO),
        TEXT: partial(texts, files),
    }
    rows = Rows(kept if kept is not None else _own_folder() / "rows")
    return evaluate(original, folders, metrics, openers, _pixels, rows, watch, prompts)


def evaluated_folder(name: str, written: str) -> Path:
    """The folder that an input called `name` names; a relative one is below ComfyUI's output folder.

    Raises ValueError where it is not there.
    """
    text = written.strip().strip("\"'")
    if not text:
        raise ValueError(f"{name} is empty. Write the path of a folder with images.")
    return folder_named(name, text, "output", folder_paths.get_output_directory())


def prompts_file(written: str) -> Path | None:
    """A file as a user names it, in quotes perhaps; a relative one is below ComfyUI's input folder. None for none.

    Raises ValueError where it is not there.
    """
    text = written.strip().strip("\"'")
    if not text:
        return None
    if (path := written_path(text, folder_paths.get_input_directory(), Path.is_file)) is not None:
        return path
    raise ValueError(
        f"prompts is {text!r:.200}, which is no file on the machine of ComfyUI. Write its whole path, or one below "
        "ComfyUI's input folder."
    )


def saved(found: Evaluation, name: str) -> list[Path]:
    """The tables that were written below the output folder. Raises RuntimeError where they cannot be."""
    try:
        return write(found, _own_folder(), name)
    except OSError as error:
        raise RuntimeError(f"{_own_folder() / name} is not saved: {error.strerror or error}") from error


def _own_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / FOLDER


def _pixels(path: Path) -> Tensor:
    """uint8 [height, width, 3]."""
    try:
        return torch.from_numpy(np.array(rgb_image(path)))
    except UnusableImageError as error:
        raise UnreadableError(str(error)) from error
