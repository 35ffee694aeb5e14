"""The picture of CLEAR Attention Map: two heat maps over the image, and the attention mass of their parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ...clear_core.pooling import pooled_grid
from ...clear_core.show.figure import EDGE, GAP, HEADING, SMALL, TOP, WIDTH, Box, Page, draw_window
from ...clear_core.show.numbers import percent
from ...clear_core.show.theme import PRINT, Theme
from ...clear_core.window import Window
from .attention_row import AttentionMass, AttentionRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

_PANEL = (WIDTH - 2 * EDGE - GAP) / 2
_ROOM = _PANEL - 40
_TALLEST, _LEGEND, _FOOT = 720, 28, 130
_QUERY = "#35d0f2"  # not in the colour map
_COLOURS = "magma"
_DECADES = 3.0  # from the brightest token to a thousandth of it


@dataclass(frozen=True, slots=True, eq=False)
class MapFigure:
    """What the picture shows. names: of the two maps. down_factor: 1 for no down-sampled tokens.

    picture: the image in grey, float32 [height, width] of 0 to 1, or None. verdict: a sentence.
    """

    title: str
    subtitle: str
    names: tuple[str, str]
    row: AttentionRow
    down_factor: int
    window: Window
    picture: Tensor | None
    verdict: str


def map_page(figure: MapFigure, theme: Theme = PRINT) -> Page:
    """1600 pixels wide; the height follows the image's proportions."""
    from matplotlib.colors import LogNorm

    row = figure.row
    grid = row.layout.image
    maps = [values.view(grid.height, grid.width) for values in (row.dense[row.image], _local_map(figure))]
    largest = max(float(values.max()) for values in maps)
    scale = LogNorm(largest * 10**-_DECADES, largest, clip=True)
    dense, local = row.dense_mass, row.local_mass
    parts = [_parts(theme, dense, dense.image * row.inside), _parts(theme, local, local.image)]
    tall = round(min(_TALLEST, _ROOM * grid.height / grid.width))
    bottom = TOP + 58 + tall + 76 + _LEGEND * math.ceil(max(map(len, parts)) / 3)
    page = Page(bottom + _FOOT, figure.title, figure.subtitle, theme)
    for number, (name, values) in enumerate(zip(figure.names, maps, strict=True)):
        left = EDGE + number * (_PANEL + GAP)
        room = page.panel(Box(left, TOP, left + _PANEL, bottom), name)
        box = Box(room.left, room.top, room.right, room.top + tall)
        _heat_map(page.grid_axes(box, name, grid), box, figure, values, scale)
        _mass(page, Box(room.left, room.top + tall + 22, room.right, room.bottom), parts[number])
    _foot(page, bottom + 22, scale, figure.verdict)
    return page


def _local_map(figure: MapFigure) -> Tensor:
    """What each image token gets through the window, and its share of what its down-sampled token gets."""
    row, factor = figure.row, figure.down_factor
    values, grid = row.windowed[row.image].clone(), row.layout.image
    pooled = row.local[: len(row.local) - row.layout.tokens]
    if len(pooled):
        cells = pooled_grid(grid, factor)
        spread = (pooled.view(cells.height, cells.width) / factor**2).repeat_interleave(factor, 0)
        values += spread.repeat_interleave(factor, 1)[: grid.height, : grid.width].flatten()
    return values


def _heat_map(axes: Axes, box: Box, figure: MapFigure, values: Tensor, scale: LogNorm) -> None:
    row, grid = figure.row, figure.row.layout.image
    extent = (0, grid.width, grid.height, 0)
    height, width = min(grid.height, int(box.bottom - box.top)), min(grid.width, int(box.right - box.left))
    # Where tokens are smaller than pixels, a pixel shows its largest token.
    values = F.adaptive_max_pool2d(values[None], (height, width))[0]
    cover: Tensor | None = None
    if figure.picture is not None:
        # The image shows through where there is little attention.
        axes.imshow(figure.picture * 0.45 + 0.08, "gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear")
        shade = torch.from_numpy(scale(values.numpy()).filled(0))
        cover = (0.25 + shade * 2.5).clamp(0, 1)
    axes.imshow(values.numpy(), _COLOURS, norm=scale, alpha=cover, extent=extent, interpolation="nearest")
    for colour, thick in (("#000000", 4.0), ("#ffffff", 2.0)):
        draw_window(axes, grid, figure.window, row.row, row.column, fill=False, ec=colour, lw=thick, clip_on=False)
    side = max(9.0, (box.bottom - box.top) / grid.height)
    for colour, thick in (("#000000", 5.0), (_QUERY, 2.5)):
        axes.plot(row.column + 0.5, row.row + 0.5, "s", mfc="none", mec=colour, mew=thick, ms=side)


def _parts(theme: Theme, mass: AttentionMass, window: float) -> list[tuple[str, str, float]]:
    """Name, colour and share of each part that there is. window: of the image's part, what lies in the window."""
    parts = [
        ("text", "#e69f00", mass.text),
        ("in the window", theme.blue, window),
        ("elsewhere in the image", theme.grey, mass.image - window),
        ("references", "#cc79a7", mass.references),
        ("down-sampled tokens", "#56b4e9", mass.pooled),
    ]
    return [part for part in parts if part[2] > 0]


def _mass(page: Page, box: Box, parts: list[tuple[str, str, float]]) -> None:
    """One bar for all of the attention, cut into its parts, and their names below."""
    axes = page.axes(Box(box.left, box.top, box.right, box.top + 22), "mass")
    start = 0.0
    for _, colour, share in parts:
        axes.barh(0, share, left=start, color=colour)
        start += share
    axes.set(xlim=(0, 1), ylim=(-0.4, 0.4), xticks=[], yticks=[])
    page.legend(box.left, box.top + 38, [(colour, f"{percent(share)} {name}") for name, colour, share in parts])


def _foot(page: Page, top: float, scale: LogNorm, verdict: str) -> None:
    from matplotlib.cm import ScalarMappable

    page.text(EDGE, top, verdict, HEADING)
    axes = page.axes(Box(EDGE, top + 44, EDGE + 420, top + 58), "scale")
    bar = page.figure.colorbar(ScalarMappable(scale, _COLOURS), axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.minorticks_off()
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.0e} %" if value < 1e-6 else f"{value * 100:g} %")
    axes.tick_params(length=3, labelsize=SMALL, labelcolor=page.theme.muted)
    page.text(
        EDGE + 440, top + 42, "attention to one token, of the query's total; logarithmic", SMALL, page.theme.muted
    )
    page.text(
        WIDTH - EDGE, top + 42, "blue square: the query; white line: its window", SMALL, page.theme.muted, "right"
    )
