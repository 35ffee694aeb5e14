"""The images of a folder with their prompts, cut to one size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import folder_paths
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...clear_core.evaluation.pairs import IMAGE_TYPES, natural
from ...clear_core.file_stamp import FileStamp
from ..options.training_set import IMAGES, encodable
from .files import written_path
from .png_prompts import prompt_in

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: width and height change places


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image with its prompt; stamp: which contents of the file it was."""

    path: Path
    prompt: str
    stamp: FileStamp


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that is not in the set, and why: a clause."""

    name: str
    reason: str


class UnusableImageError(ValueError):
    """An image that cannot be in the set. The text is a clause."""


def image_folder(folder: str) -> Path:
    """A folder as a user writes it, in quotes perhaps; a relative one is below ComfyUI's input folder.

    Raises ValueError where it is not there.
    """
    written = folder.strip().strip("\"'")
    if not written:
        raise ValueError(f"folder is empty; the source {IMAGES!r} needs one. Write the path of a folder with images.")
    return folder_named("folder", written, "input", folder_paths.get_input_directory())


def folder_named(name: str, written: str, base: str, base_folder: str) -> Path:
    """The folder that an input called `name` names; a relative path is below `base_folder`, ComfyUI's `base` folder.

    Raises ValueError where it is not there.
    """
    if (path := written_path(written, base_folder, Path.is_dir)) is not None:
        return path
    raise ValueError(
        f"{name} is {written!r:.200}, which is no folder on the machine of ComfyUI. Write its whole path, or one below "
        f"ComfyUI's {base} folder."
    )


def folder_fingerprint(folder: str) -> str:
    """Changes when an image or a text beside it does, without reading them."""
    try:
        files = [path for path in image_folder(folder).iterdir() if path.suffix.lower() in {*IMAGE_TYPES, ".txt"}]
        stamps = sorted((path.name, FileStamp.of(path)) for path in files)
    except (ValueError, OSError):
        return "missing"
    text = repr([(name, stamp.size, stamp.modified) for name, stamp in stamps])
    return hashlib.sha256(text.encode()).hexdigest()


def images_in(folder: Path, width: int, height: int) -> tuple[list[ImageFile], list[LeftOut]]:
    """The usable images in natural order (2 before 10), by their headers, and what is left out.

    Raises ValueError where none is usable or the folder cannot be read.
    """
    try:
        paths = sorted(
            (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_TYPES),
            key=lambda path: natural(path.name),
        )
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}). Allow it, or choose another folder.") from error
    found: list[ImageFile] = []
    left_out: list[LeftOut] = []
    for path in paths:
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            found.append(_looked_at(path, width, height))
        except UnusableImageError as error:
            left_out.append(LeftOut(encodable(path.name), str(error)))
    if not found:
        raise ValueError(none_left(folder, left_out))
    return found, left_out


def none_left(folder: Path, left_out: list[LeftOut]) -> str:
    """What to say of a folder without usable images."""
    if not left_out:
        return f"There is no image in {folder}; allowed are {', '.join(sorted(IMAGE_TYPES))}. Choose another folder."
    reasons = "; ".join(f"{one.name}: {one.reason}" for one in left_out[:3])
    return f"No image of {folder} can be used. Of {len(left_out)}: {reasons}"


def pixels_of(image: ImageFile, width: int, height: int) -> Tensor:
    """An image scaled to cover a size, and its centre: float32 [1, height, width, 3], 0 to 1.

    Raises UnusableImageError.
    """
    fitted = ImageOps.fit(rgb_image(image.path), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).astype(np.float32) / 255)[None]


def rgb_image(path: Path) -> Image.Image:
    """An image file in RGB, as Load Image takes it: turned by EXIF, without alpha. Raises UnusableImageError."""
    try:
        with Image.open(path) as opened:
            turned = ImageOps.exif_transpose(opened)
            if turned.mode == "I":  # as Load Image takes 16 bits
                turned = turned.point(lambda value: value * (1 / 255))
            return turned.convert("RGB")
    except Exception as error:  # whatever Pillow's plugins raise for a damaged file: no file stops the others
        raise UnusableImageError(_broken(error)) from error


def _looked_at(path: Path, width: int, height: int) -> ImageFile:
    try:
        stamp = FileStamp.of(path)
        with Image.open(path) as image:
            across, down = image.size
            if image.getexif().get(_ORIENTATION) in _TURNED:
                across, down = down, across
            own = prompt_in(image.info)
    except Exception as error:  # as in `rgb_image`
        raise UnusableImageError(_broken(error)) from error
    if 2 * across < width and 2 * down < height:
        raise UnusableImageError(f"too small, {across} x {down} pixels for {width} x {height}")
    prompt = _text_beside(path) or own
    if not prompt:
        raise UnusableImageError(f"no prompt, neither in {path.with_suffix('.txt').name} nor in the image's metadata")
    return ImageFile(path, encodable(prompt), stamp)


def _text_beside(path: Path) -> str | None:
    """The text of the .txt beside an image; None where there is none."""
    beside = path.with_suffix(".txt")
    try:
        return beside.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnusableImageError(f"{beside.name} cannot be read as UTF-8 ({error})") from error


def _broken(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__}: {str(error)[:200]})"
