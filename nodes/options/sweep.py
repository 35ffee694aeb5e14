"""The grid of CLEAR Sweep: settings of Apply CLEAR Attention, one a line, with the values of each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .clear import ApplyInputs, resolve_settings
from .sweep_settings import HOW, WEIGHTS, Value, parse_line

MOST_CELLS: Final = 144
"""Cells times seeds, or times seeds and images of the latent."""
_LARGEST_SEED: Final = 2**64 - 1
_LONGEST: Final = 10_000  # characters


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting with several values. values: as they are shown."""

    name: str
    values: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"{self.name} {value}" for value in self.values)


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid. weights: the name of a file, None for none or those that are connected."""

    label: str
    weights: str | None
    inputs: ApplyInputs


@dataclass(frozen=True, slots=True)
class SweepGrid:
    """columns, rows: the settings with several values, None where there is one value. fixed: the others, as written.

    cells: row by row. names_weights: whether the text has a line for weights, so that none may be connected.
    """

    columns: Axis | None
    rows: Axis | None
    fixed: tuple[str, ...]
    cells: tuple[Cell, ...]
    names_weights: bool

    @property
    def width(self) -> int:
        """Cells in a row."""
        return len(self.columns.values) if self.columns else 1

    @property
    def files(self) -> tuple[str, ...]:
        """Names of weights files, each once."""
        return tuple(dict.fromkeys(cell.weights for cell in self.cells if cell.weights is not None))

    def check_weights(self, *, connected: bool) -> None:
        """Raises ValueError where weights are both connected and named, or where a cell has neither weights nor radius.

        connected: whether weights are.
        """
        if connected and self.names_weights:
            raise ValueError(
                "weights are connected, and axes has a line for weights. Disconnect weights, or remove the line."
            )
        if not connected:
            for cell in self.cells:
                if cell.weights is None:
                    resolve_settings(None, cell.inputs)


def parse_grid(text: str) -> SweepGrid:
    """Read the input `axes`: a setting a line, its values separated by commas.

    Raises ValueError that says which line, what was given and what is allowed.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"axes is {len(text):,} characters long, up to {_LONGEST:,} are read. {HOW}")
    settings: dict[str, tuple[Value, ...]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, values = parse_line(line)
        if name in settings:
            raise ValueError(f"axes has two lines for {name}. Write all of its values in one line.")
        settings[name] = values
    if not settings:
        raise ValueError(f"axes is empty. {HOW}")
    several = [name for name, values in settings.items() if len(values) > 1]
    if len(several) > 2:
        raise ValueError(
            f"axes has several values for {', '.join(several)}; a sheet has columns and rows, so two settings may have "
            "several. Leave one value for the others, or run a sweep for each of their values."
        )
    axes = [Axis(name, tuple(value.shown for value in settings[name])) for name in several]
    fixed = [f"{name} {values[0].shown}" for name, values in settings.items() if len(values) == 1]
    columns, rows = (*axes, None, None)[:2]
    # Columns change fastest.
    order = [*(name for name in settings if name not in several), *reversed(several)]
    cells = tuple(_cell(order, one, several) for one in itertools.product(*(settings[name] for name in order)))
    return SweepGrid(columns, rows, tuple(fixed), cells, WEIGHTS in settings)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read the input `seeds`: integers separated by commas. Raises ValueError naming the part that cannot be read."""
    seeds: list[int] = []
    for item in filter(None, re.split(r"[\s,;]+", text[:_LONGEST].strip())):
        if not re.fullmatch(r"[0-9]{1,20}", item) or int(item) > _LARGEST_SEED:
            raise ValueError(
                f"seeds has {item!r:.60}; allowed are integers from 0 to {_LARGEST_SEED}, separated by commas, such as "
                "1, 2, 3"
            )
        if int(item) in seeds:
            raise ValueError(f"seeds has {item} twice. Write each seed once.")
        seeds.append(int(item))
    if not seeds:
        raise ValueError("seeds is empty. Write at least one, such as 0; several are separated by commas.")
    return tuple(seeds)


def check_count(grid: SweepGrid, seeds: Sequence[int], images: int = 1) -> None:
    """Raises ValueError for more cells than a sweep may have. images: of the latent, or of lists of inputs."""
    count = len(grid.cells) * len(seeds) * images
    if count > MOST_CELLS:
        more = f" x {images} images" if images > 1 else ""
        raise ValueError(
            f"The sweep has {len(grid.cells)} cells x {len(seeds)} seeds{more} = {count} in all; {MOST_CELLS} is the "
            "most. Leave out values or seeds, or run several sweeps: they may share a file."
        )


def _cell(order: Sequence[str], chosen: Sequence[Value], several: Sequence[str]) -> Cell:
    by_name = dict(zip(order, chosen, strict=True))
    sets: dict[str, Any] = {}
    for value in chosen:
        sets |= value.sets
    label = ", ".join(f"{name} {by_name[name].shown}" for name in several or order)
    weights = sets.pop(WEIGHTS, None)
    return Cell(label, weights, ApplyInputs(**sets))
