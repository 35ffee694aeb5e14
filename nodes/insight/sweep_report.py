"""What a sweep found: the contact sheet's captions, a Markdown table of means, and the lines on the node."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ...clear_core.show.numbers import shown
from ...clear_core.show.theme import Theme
from ..options.sweep import SweepGrid
from .contact_sheet import Block, Shown, contact_sheet
from .sweep_rows import Row

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Sampled:
    """An image of a sweep, scaled for the sheet, and its row."""

    picture: Image.Image
    row: Row


@dataclass(frozen=True, slots=True)
class Seed:
    """The images of one seed, and of one image of the latent's batch. cells: in the grid's order."""

    dense: Sampled | None
    cells: tuple[Sampled, ...]


def sheet(grid: SweepGrid, seeds: Sequence[Seed], theme: Theme) -> Tensor:
    """The contact sheet: IMAGE, float32 [1, height, width, 3]."""
    row = seeds[0].cells[0].row
    about = [f"{row.width} x {row.height}", f"{row.steps} steps", row.device, *grid.fixed]
    columns = grid.columns.labels if grid.columns else [grid.cells[0].label]
    several_images = len({one.row.image for seed in seeds for one in seed.cells}) > 1
    return contact_sheet(
        "CLEAR Sweep", ", ".join(about), columns, [_block(grid, seed, several_images) for seed in seeds], theme
    )


def table(grid: SweepGrid, seeds: Sequence[Seed]) -> str:
    """A row for each cell, with means over seeds and images."""
    dense = [seed.dense.row for seed in seeds if seed.dense is not None]
    names = [axis.name for axis in (grid.columns, grid.rows) if axis is not None] or ["settings"]
    lines = [
        f"| {' | '.join(names)} | seconds | speed-up | PSNR, dB | SSIM | images |",
        f"|{'---|' * (len(names) + 5)}",
    ]
    if dense:
        empty = " | " * (len(names) - 1)
        lines.append(f"| dense{empty} | {shown(_mean_seconds(dense))} | 1 | | | {len(dense)} |")
    for number, cell in enumerate(grid.cells):
        rows = [seed.cells[number].row for seed in seeds]
        values = _values(grid, number) or [cell.label]
        psnr, ssim = _scores(rows)
        lines.append(
            f"| {' | '.join(values)} | {shown(_mean_seconds(rows))} | {_speed_up(dense, rows) or NOT_MEASURED} | "
            f"{psnr or NOT_MEASURED} | {ssim or NOT_MEASURED} | {len(rows)} |"
        )
    return "\n".join(lines)


def summary(grid: SweepGrid, seeds: Sequence[Seed]) -> list[str]:
    """A line for each cell."""
    dense = [seed.dense.row for seed in seeds if seed.dense is not None]
    lines = [f"dense: {shown(_mean_seconds(dense))} s"] if dense else []
    for number, cell in enumerate(grid.cells):
        rows = [seed.cells[number].row for seed in seeds]
        lines.append(f"{cell.label}: {', '.join(_words(dense, rows))}")
    return lines


def _block(grid: SweepGrid, seed: Seed, several_images: bool) -> Block:
    dense = [seed.dense.row] if seed.dense is not None else []
    shown_cells = [Shown(one.picture, tuple(_words(dense, [one.row]))) for one in seed.cells]
    labels = grid.rows.labels if grid.rows else [""]
    row = seed.cells[0].row
    return Block(
        f"image {row.image}, seed {row.seed}" if several_images else f"seed {row.seed}",
        None if seed.dense is None else Shown(seed.dense.picture, (f"{shown(seed.dense.row.seconds)} s",)),
        tuple((label, tuple(shown_cells[i * grid.width : (i + 1) * grid.width])) for i, label in enumerate(labels)),
    )


def _words(dense: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Scores, then the time."""
    psnr, ssim = _scores(rows)
    scores = ", ".join([f"{psnr} dB"] * bool(psnr) + [f"SSIM {ssim}"] * bool(ssim))
    speed_up = _speed_up(dense, rows)
    return [scores or NOT_MEASURED, f"{shown(_mean_seconds(rows))} s" + (f", {speed_up} x" if speed_up else "")]


def _values(grid: SweepGrid, number: int) -> list[str]:
    """Of the settings with several values, in a cell."""
    row, column = divmod(number, grid.width)
    axes = ((grid.columns, column), (grid.rows, row))
    return [axis.values[at] for axis, at in axes if axis is not None]


def _scores(rows: Sequence[Row]) -> tuple[str, str]:
    """Mean PSNR and SSIM; "" where they were not measured. Equal images count as 100 dB where others are not equal."""
    psnr, ssim = _known(row.psnr for row in rows), _known(row.ssim for row in rows)
    if not psnr:
        return "", ""
    equal = all(map(math.isinf, psnr))
    mean = statistics.mean(min(value, 100.0) for value in psnr)
    return "inf" if equal else f"{mean:.2f}", f"{statistics.mean(ssim):.4f}" if ssim else ""


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean_seconds(rows: Sequence[Row]) -> float:
    return statistics.mean(row.seconds for row in rows)


def _speed_up(dense: Sequence[Row], rows: Sequence[Row]) -> str:
    """How many times as fast as dense; "" where it was not measured."""
    seconds = _mean_seconds(rows)
    return shown(_mean_seconds(dense) / seconds) if dense and seconds > 0 else ""
