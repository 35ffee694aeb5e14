"""Saves a batch to ComfyUI's output folder: the pixels and the metadata of Save Image, in bands of rows."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import comfy.cli_args
import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ....clear_core.hub.released import size_text
from ....clear_core.whole_file import written_whole
from ...insight.slider_images import File
from . import BAND
from .formats import Write, write_png, write_tiff

_WRITERS: Final[Mapping[str, Write]] = MappingProxyType({"png": write_png, "tiff": write_tiff})
_CHANNELS: Final = (1, 3, 4)


def save_large(images: Tensor, prefix: str, kind: str, metadata: Mapping[str, Any]) -> list[File]:
    """Save a batch [B, height, width, C], numbered as Save Image does. kind: "png" or "tiff".

    Raises ValueError for what is no image, RuntimeError with a sentence where the disk is full or cannot be written to,
    and ComfyUI's own exception on Cancel. An image that is not complete leaves no file.
    """
    _check(images)
    count, height, width, _ = images.shape
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    bar = ProgressBar(count * height)
    saved: list[File] = []
    for i, image in enumerate(images):
        file = f"{name.replace('%batch_num%', str(i))}_{number + i:05}_.{kind}"
        before = f" The images before it, {i} of {count}, are saved." if i else ""
        save_image(image, Path(folder) / file, kind, metadata, bar.update, before)
        saved.append(File(filename=file, subfolder=subfolder, type="output"))
    return saved


def image_metadata(prompt: Any, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, Any]:
    """What Save Image writes beside the pixels; nothing with --disable-metadata."""
    if comfy.cli_args.args.disable_metadata:
        return {}
    return ({} if prompt is None else {"prompt": prompt}) | dict(extra_pnginfo or {})


def _check(images: Tensor) -> None:
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images has the shape {tuple(images.shape)}, without pixels. Connect an IMAGE with pixels.")
    if images.shape[-1] not in _CHANNELS:
        raise ValueError(
            f"images has {images.shape[-1]} channels; allowed are 1 (grey), 3 (RGB) and 4 (RGBA). Connect an image."
        )


def save_image(
    image: Tensor,
    path: Path,
    kind: str,
    metadata: Mapping[str, Any],
    done: Callable[[int], None] = lambda rows: None,
    before: str = "",
) -> None:
    """Save one image [height, width, C], whole or not at all. done: called with the number of rows written.

    before: a sentence for the end of an error. Raises RuntimeError where the disk is full or cannot be written to.
    """
    height, width, channels = image.shape
    rows = min(height, max(1, BAND // width))
    try:
        # Its name begins with the file's, which keeps the number from being taken twice.
        with written_whole(path) as part, part.open("xb") as stream:
            _WRITERS[kind](stream, (height, width, channels), rows, _bands(image, rows, done), metadata)
    except OSError as error:
        raise RuntimeError(_reason(error, path.parent, path.name, image) + before) from error


def _bands(image: Tensor, rows: int, done: Callable[[int], None]) -> Iterator[np.ndarray]:
    for top in range(0, len(image), rows):
        comfy.model_management.throw_exception_if_processing_interrupted()
        band = image[top : top + rows].cpu()
        # numpy has no bfloat16. Otherwise Save Image's expression, in the image's own dtype: the same pixels.
        values = (band.float() if band.dtype == torch.bfloat16 else band).numpy()
        done(len(band))  # not after the last yield, to which a writer need not come back
        yield np.clip(255.0 * values, 0, 255).astype(np.uint8)


def _reason(error: OSError, folder: Path, file: str, image: Tensor) -> str:
    height, width, _ = image.shape
    start = f"{file}, {width} x {height} pixels, is not saved"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{start}: the disk of {folder} is full. It has {size_text(shutil.disk_usage(folder).free)} free, and this "
            f"image takes up to {size_text(image.numel())}. Make room, or start ComfyUI with --output-directory on "
            "another disk."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{start}: the disk of {folder} does not take files of that size, up to {size_text(image.numel())}. Start "
            "ComfyUI with --output-directory on another disk."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{start}: {folder} cannot be written to ({os.strerror(error.errno)}). Allow it, or start ComfyUI with "
            "--output-directory."
        )
    return f"{start}: {error}. Check the disk of {folder}, or start ComfyUI with --output-directory on another disk."
