"""The rows of a sweep as a CSV file: one for each sampled image, written as soon as it has been measured."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ...clear_core.whole_file import written_whole

DENSE, CLEAR = "dense", "CLEAR"
SETTINGS: Final = (
    *("weights", "radius", "down_factor", "strength", "ntk_factor", "proportional_attention", "references", "blocks"),
    *("start_percent", "end_percent", "backend"),
)
"""As used: 0 is resolved. Empty for the dense image."""
COLUMNS: Final = (
    *("attention", *SETTINGS, "image", "seed", "width", "height", "steps"),
    *("seconds", "psnr", "ssim", "device", "finished", "file", "key"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One sampled image.

    key: a digest of all that the image and its time depend on. settings: by the names of `SETTINGS`; empty for the
    dense image. image: number in the batch, from 1. seconds: of the sampler's steps. psnr: in dB against the dense
    image of the seed, inf for equal images; None where it was not measured, as ssim. finished: local time. file: of
    the image, relative to the CSV file.
    """

    key: str
    settings: Mapping[str, Any]
    image: int
    seed: int
    width: int
    height: int
    steps: int
    seconds: float
    device: str
    finished: str
    file: str
    psnr: float | None = None
    ssim: float | None = None

    def cells(self) -> dict[str, str]:
        """By column."""
        numbers = {"seconds": _number(self.seconds, 4), "psnr": _number(self.psnr, 4), "ssim": _number(self.ssim, 6)}
        others = {name: str(getattr(self, name)) for name in COLUMNS if name in self.__slots__ and name not in numbers}
        settings = {name: str(self.settings.get(name, "")) for name in SETTINGS}
        return {"attention": CLEAR if self.settings else DENSE, **settings, **others, **numbers}

    @classmethod
    def of(cls, cells: Mapping[str, str]) -> Row:
        """Raises ValueError for what is no row."""
        if cells["attention"] not in (DENSE, CLEAR):
            raise ValueError(f"attention is {cells['attention']!r}")
        settings = {name: cells[name] for name in SETTINGS} if cells["attention"] == CLEAR else {}
        texts: dict[str, Any] = {name: cells[name] for name in ("key", "device", "finished", "file")}
        counts: dict[str, Any] = {name: int(cells[name]) for name in ("image", "seed", "width", "height", "steps")}
        scores: dict[str, Any] = {name: float(cells[name]) if cells[name] else None for name in ("psnr", "ssim")}
        return cls(settings=MappingProxyType(settings), seconds=float(cells["seconds"]), **texts, **counts, **scores)


class SweepRows:
    """The rows of one CSV file, which may hold several sweeps. Rows that another program has changed are kept."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where there is a file that is no sweep's, OSError where it cannot be read."""
        self.path = path
        self._rows: list[dict[str, str]] = []
        if path.exists():
            self._rows = _read(path)

    def find(self, key: str) -> Row | None:
        """The row of a key, if it can be read."""
        for cells in self._rows:
            if cells["key"] == key:
                try:
                    return Row.of(cells)
                except ValueError:
                    return None
        return None

    def put(self, row: Row) -> None:
        """Write the row, in place of the one with its key or at the end. Raises OSError, with the file as it was."""
        cells = row.cells()
        rows = [cells if one["key"] == row.key else one for one in self._rows]
        if cells not in rows:
            rows.append(cells)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._rows = rows


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            if tuple(reader.fieldnames or ()) == COLUMNS:
                return [{name: cells[name] for name in COLUMNS} for cells in reader]
    except (UnicodeDecodeError, csv.Error):
        pass
    raise ValueError(
        f"{path} is there and has other columns than a sweep of this version: another program has written it. Choose "
        "another filename_prefix, or move the file away."
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
