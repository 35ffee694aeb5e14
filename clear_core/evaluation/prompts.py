"""The prompts of images, for CLIP-T.

.json   an object, {"0001": "a red house", ...}: the image's file name, with or without its extension, and the prompt
.csv    a header with the columns `name` and `prompt`; others are ignored
.txt    a prompt a line, in natural order of the original's images (2 before 10); as many lines as images
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .pairs import IMAGE_TYPES


def read_prompts(path: Path, stems: Sequence[str]) -> dict[str, str]:
    """Prompts by stem; images without one are left out. stems: of the original's images, in natural order.

    Raises ValueError for a file that is not as described above, and where none of the images has a prompt.
    """
    readers = {".json": _from_json, ".csv": _from_csv, ".txt": _from_text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"prompts is {path.name!r}; allowed are files that end in {', '.join(readers)}.")
    try:
        found = reader(path.read_text(encoding="utf-8-sig"), path.name, stems)
    except OSError as error:
        raise ValueError(f"prompts is {str(path)!r}, which cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error}). Save it as UTF-8.") from error
    by_stem = {_stem(name): prompt.strip() for name, prompt in found}
    prompts = {stem: by_stem[stem] for stem in stems if by_stem.get(stem)}
    if not prompts:
        raise ValueError(
            f"{path.name} has a prompt for none of the images: it names {', '.join(list(by_stem)[:3]) or 'none'}, the "
            f"images are {', '.join(stems[:3])}. Name the images by their file names."
        )
    return prompts


def _from_json(text: str, name: str, stems: Sequence[str]) -> Iterable[tuple[str, str]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON ({error}).") from error
    if not isinstance(found, dict) or not all(isinstance(prompt, str) for prompt in found.values()):
        raise ValueError(f'{name} must be one object of file names and prompts, such as {{"0001": "a red house"}}.')
    return found.items()


def _from_csv(text: str, name: str, stems: Sequence[str]) -> Iterable[tuple[str, str]]:
    rows = csv.DictReader(text.splitlines())
    columns = rows.fieldnames or []
    if not {"name", "prompt"} <= set(columns):
        raise ValueError(f"{name} has the columns {', '.join(columns) or '(none)'}; it needs `name` and `prompt`.")
    return [(row["name"] or "", row["prompt"] or "") for row in rows]


def _from_text(text: str, name: str, stems: Sequence[str]) -> Iterable[tuple[str, str]]:
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if len(lines) != len(stems):
        raise ValueError(
            f"{name} has {len(lines)} lines with text and the original has {len(stems)} images; the n-th line is the "
            "prompt of the n-th image. Name the images instead, in a .json or .csv file."
        )
    return zip(stems, lines, strict=True)


def _stem(name: str) -> str:
    """Dots within a stem stay."""
    path = Path(name.strip())
    return path.stem if path.suffix.lower() in IMAGE_TYPES else path.name
