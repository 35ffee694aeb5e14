"""Reads a part of an image file, whatever the image's size: Pillow's limit is for images that are opened unseen.

The values are those of ComfyUI's Load Image: RGB in 0 to 1, and a mask that is 1 - alpha. Of several pages or frames
the first is read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy.utils import ProgressBar
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from torch import Tensor

from ....clear_core.file_stamp import FileStamp
from ...options.region import LONGEST, MOST, Region
from . import BAND
from .tiff_rows import TiffRows, tiff_rows

_PLUGINS: Final = (
    (b"\x89PNG", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
"""By their first bytes: the formats that hold large images. Pillow's classes themselves have no limit of pixels."""

_DAMAGED: Final = (OSError, SyntaxError, ValueError, LookupError, EOFError, struct.error, zlib.error)
"""What Pillow and a TIFF's parser raise for a file that is not what its header says."""

_ORIENTATION: Final = 0x0112


def input_images() -> list[str]:
    """The image files of the input folder, as Load Image lists them."""
    folder = folder_paths.get_input_directory()
    files = [path.name for path in Path(folder).glob("*") if path.is_file()]
    return sorted(folder_paths.filter_files_content_types(files, ["image"]))


def image_path(name: str) -> Path:
    """The file that a value such as "a.png" or "a.png [output]" names. Raises ValueError unless it is there.

    ComfyUI's own functions follow `..` and absolute paths out of the folder; a workflow may come from anywhere.
    """
    if isinstance(name, str):
        relative, base = folder_paths.annotated_filepath(name)
        base = os.path.normpath(base or folder_paths.get_input_directory())
        path = os.path.normpath(os.path.join(base, relative))  # not resolved: links in the folder are the user's own
        if path.startswith(base + os.sep) and os.path.isfile(path):  # noqa: PTH113 - Path raises for too long a name
            return Path(path)
    raise ValueError(f"There is no image {name!r:.60} in the input folder. Choose one of the list, or upload it.")


def image_fingerprint(name: str) -> str:
    """Changes when the file does, without reading it."""
    try:
        stamp = FileStamp.of(image_path(name))
    except (ValueError, OSError):
        return "missing"
    return f"{stamp.size}:{stamp.modified}"


def check_region(name: str, region: Region) -> None:
    """Raises ValueError where the file is no image or the region reaches out of it. Reads the header alone."""
    path = image_path(name)
    with path.open("rb") as file:
        region.box(_turned_size(path, _opened(path, file)))


def load_region(name: str, region: Region) -> tuple[Tensor, Tensor]:
    """IMAGE [1, height, width, 3] and MASK [1, height, width], or [1, 64, 64] of zeros without alpha; float32.

    Raises ValueError as `check_region` does, or where the file is damaged, and ComfyUI's own exception on Cancel.
    """
    return _loaded(image_path(name), region)


def load_image(path: Path) -> Tensor:
    """A whole image [height, width, 3]. Raises ValueError where it is damaged, OSError where it is not there."""
    return _loaded(path, Region())[0][0]


def _loaded(path: Path, region: Region) -> tuple[Tensor, Tensor]:
    with path.open("rb") as file:
        image = _opened(path, file)
        # Before the pixels are decoded, which takes a while.
        box = region.box(_turned_size(path, image))
        with _explained(path):
            rows = tiff_rows(path) if image.format == "TIFF" else None
        if rows is None:
            with _explained(path):
                # In place: no copy where there is nothing to turn.
                ImageOps.exif_transpose(image, in_place=True)
            box, rows = region.box(image.size), _PillowRows(image)
        return _filled(path, box, rows)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path.name} is too large for Pillow in its format ({error}). Save it as PNG, JPEG, or TIFF with deflate."
        ) from error
    except _DAMAGED as error:
        raise ValueError(
            f"{path.name} cannot be read ({type(error).__name__}: {str(error)[:200]}). The file is damaged, not "
            "complete or no image: copy it again, or save it as PNG or TIFF."
        ) from error


def _opened(path: Path, file: IO[bytes]) -> ImageFile.ImageFile:
    """Its header is read. Raises ValueError for what is no image, or has more pixels than an image may have."""
    with _explained(path):
        start = file.read(4)
        file.seek(0)
        plugin = next((plugin for first, plugin in _PLUGINS if start.startswith(first)), None)
        image = plugin(file) if plugin else Image.open(file)  # another format, with Pillow's limit
    width, height = image.size
    if max(width, height) > LONGEST or width * height > MOST:
        raise ValueError(
            f"{path.name} has {width} x {height} pixels by its header; allowed are {LONGEST} a side and {MOST:,} in "
            "all. Cut it into parts with another program, or copy the file again if that is not its size."
        )
    return image


def _turned_size(path: Path, image: ImageFile.ImageFile) -> tuple[int, int]:
    """width, height as Load Image turns it, by EXIF; Pillow turns a TIFF by itself."""
    width, height = image.size
    with _explained(path):
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if turned and image.format != "TIFF" else (width, height)


class _PillowRows:
    """The rows of a decoded image."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        palette_alpha = image.mode == "P" and "transparency" in image.info
        self.has_alpha = "A" in image.getbands() or palette_alpha

    def read(self, left: int, top: int, right: int, bottom: int) -> Iterator[tuple[int, int, np.ndarray]]:
        rows = max(1, BAND // (right - left))
        for y in range(top, bottom, rows):
            # Load Image's steps, for a band at a time.
            band = self._image.crop((left, y, right, min(bottom, y + rows)))
            if band.mode == "I":
                band = band.point(lambda value: value * (1 / 255))
            pixels = np.asarray(band.convert("RGB"))
            if self.has_alpha:
                alpha = band.convert("RGBA") if band.mode == "P" else band
                pixels = np.dstack((pixels, np.asarray(alpha.getchannel("A"))))
            yield y, left, pixels


def _filled(path: Path, box: tuple[int, int, int, int], rows: TiffRows | _PillowRows) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    image = torch.empty(1, height, width, 3)
    mask = torch.empty(1, height, width) if rows.has_alpha else torch.zeros(1, 64, 64)
    rgb, alpha = image[0].numpy(), mask[0].numpy()
    bar = ProgressBar(height * width)
    parts = rows.read(left, top, right, bottom)
    while True:
        comfy.model_management.throw_exception_if_processing_interrupted()
        with _explained(path):
            part = next(parts, None)
        if part is None:
            return image, mask
        y, x, pixels = part
        place = np.s_[y - top : y - top + pixels.shape[0], x - left : x - left + pixels.shape[1]]
        largest = np.iinfo(pixels.dtype).max
        rgb[place] = pixels[..., :3].astype(np.float32) / largest  # grey is repeated
        if rows.has_alpha:
            alpha[place] = 1 - pixels[..., 3].astype(np.float32) / largest
        bar.update(pixels.shape[0] * pixels.shape[1])
