"""Feature maps that are written and read in rows, kept in memory or, beyond a budget, in temporary files."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""channels, height, width"""


class StorageError(RuntimeError):
    """A feature map cannot be kept; the text says what was needed, what there is and what to do."""


class FeatureMap(Protocol):
    """[channels, height, width] of one dtype."""

    shape: Shape
    dtype: torch.dtype

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Rows, contiguous or not: [1, channels, stop - start, width]."""
        ...

    def write(self, start: int, rows: Tensor) -> None:
        """rows: [1, channels, rows, width], on any device."""
        ...

    def close(self) -> None:
        """Give back what it takes."""
        ...


class MemoryMap:
    """A feature map in one tensor."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype = shape, dtype
        self._tensor: Tensor | None = torch.empty(shape, dtype=dtype, device=device)

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        return self._open()[:, start:stop].unsqueeze(0).to(device)

    def write(self, start: int, rows: Tensor) -> None:
        self._open()[:, start : start + rows.shape[2]] = rows[0]

    def close(self) -> None:
        self._tensor = None

    def _open(self) -> Tensor:
        if self._tensor is None:
            raise ValueError("the feature map is closed")
        return self._tensor


class FileMap:
    """A feature map in a temporary file, row after row. The system deletes it with its handle, after a crash too."""

    def __init__(self, shape: Shape, dtype: torch.dtype, folder: Path) -> None:
        """Raises OSError where the file cannot be made."""
        self.shape, self.dtype = shape, dtype
        self._row = shape[0] * shape[2] * dtype.itemsize  # bytes
        self._file: Any = tempfile.TemporaryFile(dir=folder, prefix="clear_strips_", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()  # lanes share the position in the file

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        channels, _, width = self.shape
        rows = torch.empty(stop - start, channels, width, dtype=self.dtype)
        view = _bytes(rows)
        with self._lock:
            self._file.seek(start * self._row)
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise ValueError("rows are read that were not written")
                done += count
        return rows.transpose(0, 1).unsqueeze(0).to(device)

    def write(self, start: int, rows: Tensor) -> None:
        """Raises OSError where the disk is full."""
        view = _bytes(rows[0].transpose(0, 1).contiguous().cpu())
        with self._lock:
            self._file.seek(start * self._row)
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])

    def close(self) -> None:
        self._file.close()


class Storage:
    """Makes feature maps: in memory up to a budget, then in files of a folder. What is left at its end is closed.

    in_memory, in_files: the most bytes that were taken at a time.
    """

    def __init__(self, memory: int, folder: Path, device: torch.device | None = None) -> None:
        """memory: bytes. folder: it exists. device: where maps in memory are kept, by default in main memory."""
        self.in_memory = self.in_files = 0
        self._memory, self._folder = memory, folder
        self._device = device or torch.device("cpu")
        self._sizes: dict[FeatureMap, int] = {}  # bytes of those that are open

    def check(self, size: int) -> None:
        """Raises StorageError where memory and disk together have less room than `size` bytes."""
        if size > self._memory + shutil.disk_usage(self._folder).free:
            raise self._full(size - self._memory)

    def new(self, shape: Shape, dtype: torch.dtype) -> FeatureMap:
        """Raises StorageError where neither memory nor disk has room for it."""
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        made: FeatureMap
        if self._held(MemoryMap) + size <= self._memory:
            made = MemoryMap(shape, dtype, self._device)
        else:
            made = self._file(shape, dtype, size)
        self._sizes[made] = size
        self.in_memory = max(self.in_memory, self._held(MemoryMap))
        self.in_files = max(self.in_files, self._held(FileMap))
        return made

    def write(self, target: FeatureMap, start: int, rows: Tensor) -> None:
        """Write rows of a map. Raises StorageError where the disk is full."""
        try:
            target.write(start, rows)
        except OSError as error:
            raise self._full(rows.nbytes) from error

    def drop(self, made: FeatureMap) -> None:
        """Close a map that is not needed any more."""
        del self._sizes[made]
        made.close()

    def _file(self, shape: Shape, dtype: torch.dtype, size: int) -> FileMap:
        # Those that are open may still have to be written.
        if size > shutil.disk_usage(self._folder).free:
            raise self._full(size)
        try:
            return FileMap(shape, dtype, self._folder)
        except OSError as error:
            raise StorageError(f"No file can be made in {self._folder}: {error}") from error

    def _full(self, needed: int) -> StorageError:
        return StorageError(
            f"Feature maps need {needed / 2**30:.1f} GiB more than main memory has; {self._folder} has "
            f"{shutil.disk_usage(self._folder).free / 2**30:.1f} GiB free. Free space there, start ComfyUI with "
            "--temp-directory on a larger disk, or choose a smaller image."
        )

    def _held(self, kind: type[FeatureMap]) -> int:
        return sum(size for made, size in self._sizes.items() if isinstance(made, kind))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for made in self._sizes:
            made.close()
        self._sizes.clear()


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array).cast("B")
