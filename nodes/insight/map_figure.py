"""The picture of CLEAR Attention Map: two heat maps over the image, and where the attention goes in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ...clear_core.pooling import pooled_grid
from ...clear_core.window import Window
from .canvas import (
    BODY,
    DENSE,
    HEADING,
    INK,
    LOCAL,
    LOCAL_SOFT,
    MUTED,
    PANEL,
    RULE,
    SMALL,
    TITLE,
    Box,
    Sheet,
    TokenPlan,
    heat,
    on_decades,
    outline_window,
    percent,
    resized,
)
from .probe import Look, Shares

_WIDTH, _EDGE, _GAP, _TOP = 1600, 48, 28, 136
_PANEL = (_WIDTH - 2 * _EDGE - _GAP) / 2
_TALLEST, _LEGEND, _FOOT = 720, 28, 130
_PLACE = "#35d0f2"  # on no heat map
_DECADES = 3.0  # from the brightest token to a thousandth of it
_PARTS = (("text", "#c9a24b"), ("in the window", LOCAL), ("elsewhere in the image", DENSE))
_MORE = (("references", "#8d78a8"), ("coarse view", LOCAL_SOFT))


@dataclass(frozen=True, slots=True, eq=False)
class MapPage:
    """What the picture shows. names: of the two maps. down_factor: 1 for no coarse view.

    picture: in grey, [height, width], or None. verdict: a sentence.
    """

    title: str
    subtitle: str
    names: tuple[str, str]
    look: Look
    down_factor: int
    window: Window
    picture: Tensor | None
    verdict: str


def map_picture(page: MapPage) -> Tensor:
    """float32 [1, height, width, 3]; the height follows the image's proportions."""
    look, grid = page.look, page.look.layout.image
    room = _PANEL - 40
    tall = round(min(_TALLEST, room * grid.height / grid.width))
    maps = (look.dense[look.image], _local_map(look, page.down_factor))
    largest = max(float(values.max()) for values in maps)
    inside, dense, local = look.inside, look.dense_shares, look.local_shares
    parts = (_parts(dense, dense.image * inside, dense.image * (1 - inside)), _parts(local, local.image, 0.0))
    bottom = _TOP + 56 + tall + 76 + _LEGEND * math.ceil(max(len(names) for names in parts) / 3)
    sheet = Sheet(_WIDTH, bottom + _FOOT)
    sheet.text((_EDGE, 36), page.title, TITLE)
    sheet.text((_EDGE, 84), page.subtitle, BODY, MUTED)
    for number, (name, values) in enumerate(zip(page.names, maps, strict=True)):
        left = _EDGE + number * (_PANEL + _GAP)
        panel = Box(left, _TOP, left + _PANEL, bottom)
        sheet.rectangle(panel, PANEL, RULE)
        sheet.text((left + 20, _TOP + 16), name, HEADING)
        plan = TokenPlan.of(Box(left + 20, _TOP + 56, left + 20 + room, _TOP + 56 + tall), grid.height, grid.width)
        _heat_map(sheet, plan, page, values, largest)
        _shares(sheet, Box(left + 20, plan.box.bottom + 22, panel.right - 20, bottom - 14), parts[number])
    _foot(sheet, bottom + 22, largest, page.verdict)
    return sheet.tensor()


def _local_map(look: Look, factor: int) -> Tensor:
    """What each token of the image gets through the window, and its part of what its down-sampled cell gets."""
    values, grid = look.windowed[look.image].clone(), look.layout.image
    cells = look.local[: len(look.local) - look.layout.tokens]
    if len(cells):
        shape = pooled_grid(grid, factor)
        spread = cells.view(1, 1, shape.height, shape.width) / factor**2
        spread = F.interpolate(spread, scale_factor=factor, mode="nearest")[0, 0, : grid.height, : grid.width]
        values += spread.flatten()
    return values


def _heat_map(sheet: Sheet, plan: TokenPlan, page: MapPage, values: Tensor, largest: float) -> None:
    grid, look = page.look.layout.image, page.look
    shade = resized(on_decades(values.view(grid.height, grid.width), largest, _DECADES), plan.box)
    colours = heat(shade).astype(np.float32)
    if page.picture is not None:
        # The image shows through where there is little attention.
        height, width = shade.shape
        grey = F.interpolate(page.picture[None, None], (height, width), mode="bilinear")[0, 0].numpy()
        ground = np.stack([20 + grey * 110] * 3, axis=-1)
        cover = np.clip(0.25 + shade * 2.5, 0, 1)[..., None]
        colours = ground * (1 - cover) + colours * cover
    sheet.picture(plan.box, colours.round().astype(np.uint8))
    outline_window(sheet, plan, page.window, look.row, look.column, "#ffffff")
    cell = plan.cells(look.row, look.column, look.row + 1, look.column + 1)
    x, y, half = (cell.left + cell.right) / 2, (cell.top + cell.bottom) / 2, max(4.0, cell.width / 2 + 1)
    sheet.rectangle(Box(x - half - 1, y - half - 1, x + half + 1, y + half + 1), None, "#000000")
    sheet.rectangle(Box(x - half, y - half, x + half, y + half), None, _PLACE, 2)


def _parts(shares: Shares, window: float, elsewhere: float) -> list[tuple[str, str, float]]:
    """Name, colour and share of each part that there is."""
    named = zip((*_PARTS, *_MORE), (shares.text, window, elsewhere, shares.references, shares.coarse), strict=True)
    return [(name, colour, share) for (name, colour), share in named if share > 0]


def _shares(sheet: Sheet, room: Box, parts: list[tuple[str, str, float]]) -> None:
    """One bar for the whole of the attention, cut into its parts, and their names below."""
    x, column = room.left, room.width / 3
    for number, (name, colour, share) in enumerate(parts):
        sheet.rectangle(Box(x, room.top, x + room.width * share, room.top + 22), colour)
        x += room.width * share
        left, top = room.left + number % 3 * column, room.top + 38 + number // 3 * _LEGEND
        sheet.rectangle(Box(left, top + 3, left + 14, top + 17), colour)
        sheet.text((left + 22, top), f"{percent(share)} {name}", SMALL, INK)


def _foot(sheet: Sheet, top: float, largest: float, verdict: str) -> None:
    sheet.text((_EDGE, top), verdict, HEADING)
    bar = Box(_EDGE, top + 48, _EDGE + 300, top + 62)
    sheet.picture(bar, np.tile(heat(np.linspace(0, 1, 300)), (14, 1, 1)))
    scale = (
        f"share of all attention for one token, from {_precise(largest / 10**_DECADES)} or less to {_precise(largest)}"
    )
    sheet.text((bar.right + 14, top + 45), f"{scale}, logarithmic", SMALL, MUTED)
    sheet.text((_WIDTH - _EDGE, top + 45), "blue: the place that looks; white: the window", SMALL, MUTED, "right")


def _precise(share: float) -> str:
    """A small share in percent: 1.2 %, 0.0012 %."""
    return f"{share * 100:.2g} %" if share >= 1e-6 else f"{share * 100:.0e} %"
