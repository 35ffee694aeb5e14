"""A sweep on disk, in ComfyUI's output folder: PREFIX.csv, and the images in the folder PREFIX beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import folder_paths
from torch import Tensor

from ...insight.sweep_rows import Row, SweepRows
from ..large_images.read import load_image
from ..large_images.save import save_image

_LONGEST: Final = 80  # characters of a label in a file's name


class SweepStore:
    """The rows and images of one prefix."""

    def __init__(self, prefix: str) -> None:
        """Raises ValueError for a prefix that leads out of the output folder, or a file there that is no sweep's."""
        check_prefix(prefix)
        folder, name, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        self._folder, self._name = Path(folder), name
        self._rows = SweepRows(self._folder / f"{name}.csv")

    @property
    def file(self) -> str:
        """The CSV file, relative to the output folder."""
        return os.path.relpath(self._rows.path, folder_paths.get_output_directory())

    def has(self, key: str) -> bool:
        """Whether there is a finished image, as far as that can be known without reading it."""
        row = self._row(key)
        return row is not None and (self._folder / row.file).is_file()

    def find(self, key: str) -> tuple[Row, Tensor] | None:
        """A finished image [height, width, 3] with its row; None where one of them is missing or damaged."""
        row = self._row(key)
        if row is None:
            return None
        try:
            return row, load_image(self._folder / row.file)
        except (ValueError, OSError):
            return None

    def _row(self, key: str) -> Row | None:
        row = self._rows.find(key)
        # A file of the user's, who may have edited it: it leads to no other folder.
        return row if row is not None and Path(row.file).parent == Path(self._name) else None

    def name_of(self, label: str, key: str) -> str:
        """The file of an image, relative to the CSV file."""
        words = re.sub(r"[^\w.-]+", "_", label)[:_LONGEST].strip("_.")
        return f"{self._name}/{words}_{key[:8]}.png"

    def save(self, file: str, image: Tensor, metadata: Mapping[str, Any]) -> Tensor:
        """Write an image [height, width, 3] under a name of `name_of`; the image as it is read again, in 8 bits.

        Raises RuntimeError where it cannot be written.
        """
        path = self._folder / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeError(_reason(path.parent, error)) from error
        save_image(image, path, "png", metadata)
        return load_image(path)

    def put(self, row: Row) -> None:
        """Write a row. Raises RuntimeError where that fails."""
        try:
            self._rows.put(row)
        except OSError as error:
            raise RuntimeError(_reason(self._rows.path, error)) from error


def check_prefix(prefix: str) -> None:
    """Raises ValueError for a prefix whose files would not lie in the output folder."""
    output = os.path.normpath(folder_paths.get_output_directory())
    path = os.path.normpath(os.path.join(output, prefix))
    if not path.startswith(output + os.sep) or "\0" in prefix or prefix.endswith(("/", "\\")):
        raise ValueError(
            f"filename_prefix is {prefix!r:.60}; write the name of a file in ComfyUI's output folder, such as "
            "CLEAR_sweep or sweeps/my_prompt"
        )


def _reason(path: Path, error: OSError) -> str:
    why = os.strerror(error.errno) if error.errno else str(error)
    return (
        f"{path} is not saved: {why}. Close it in other programs, make room, or start ComfyUI with --output-directory. "
        "The next run goes on after the cells that are saved."
    )
