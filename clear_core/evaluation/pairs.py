"""Images of two folders that belong together: those whose file names are the same up to the extension."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..file_stamp import FileStamp

IMAGE_TYPES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_NAMED = 3  # file names in an error


@dataclass(frozen=True, slots=True)
class Pair:
    """stem: the file name without its extension. image: that of the folder that is evaluated; original: its partner."""

    stem: str
    image: FileStamp
    original: FileStamp


@dataclass(frozen=True, slots=True)
class Pairs:
    """In natural order of their stems. without_original, without_image: stems that only one of the folders has."""

    folder: Path
    pairs: tuple[Pair, ...]
    without_original: tuple[str, ...]
    without_image: tuple[str, ...]


def images_of(folder: Path) -> dict[str, FileStamp]:
    """The image files of a folder by stem, in natural order; folders inside are not read.

    Raises ValueError where there is none, where two share a stem, or where the folder cannot be read.
    """
    found: dict[str, FileStamp] = {}
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_TYPES and path.is_file()]
        for path in sorted(paths, key=lambda path: natural(path.name)):
            if path.stem in found:
                raise ValueError(
                    f"{folder} has two images of the name {path.stem!r}: {found[path.stem].path.name} and {path.name}. "
                    "Images are matched by their names without the extension; move one of them away."
                )
            found[path.stem] = FileStamp.of(path)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}). Allow it, or choose another folder.") from error
    if not found:
        raise ValueError(
            f"There is no image in {folder}; allowed are {', '.join(sorted(IMAGE_TYPES))}. Choose another folder."
        )
    return found


def matched(folder: Path, original: Path, originals: Mapping[str, FileStamp]) -> Pairs:
    """The images of `folder` with their partners among `originals`, which `images_of(original)` gave.

    Raises ValueError as `images_of`, and where no image has a partner.
    """
    images = images_of(folder)
    pairs = tuple(Pair(stem, images[stem], originals[stem]) for stem in images if stem in originals)
    if not pairs:
        raise ValueError(
            f"No image of {folder} has the name of one of {original}, extensions aside: "
            f"{_some(images)} against {_some(originals)}. Give both images of a prompt one name."
        )
    without_original = tuple(stem for stem in images if stem not in originals)
    return Pairs(folder, pairs, without_original, tuple(stem for stem in originals if stem not in images))


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key to sort file names by: numbers in them count as numbers, 2 comes before 10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _some(images: Mapping[str, FileStamp]) -> str:
    names = [stamp.path.name for stamp in images.values()]
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
