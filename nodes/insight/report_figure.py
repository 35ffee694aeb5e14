"""The picture of CLEAR Report: the window over the grid, the plan of tiles, the backends, and the cost by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...clear_core.backends.triton.tile_plan import TilePlan
from ...clear_core.layout import Grid
from ...clear_core.window import Window
from .canvas import (
    ACCENT,
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
    draw_bar,
    draw_lattice,
    draw_window,
    outline_window,
    percent,
    shown,
    ticks,
)
from .cost import Backends, SizeFigures

_WIDTH, _HEIGHT, _EDGE, _GAP = 1600, 1180, 48, 28
_THIRD = (_WIDTH - 2 * _EDGE - 2 * _GAP) / 3
_HALF = (_WIDTH - 2 * _EDGE - _GAP) / 2
_TOP, _LOWER, _BOTTOM = 136, 700, _HEIGHT - 44
_FINEST = 6  # pixels between two lines of a lattice


@dataclass(frozen=True, slots=True)
class ReportPage:
    """What the picture shows. width, height: pixels. down_factor: 1 for no coarse view. layers: with attention."""

    width: int
    height: int
    subtitle: str
    grid: Grid
    window: Window
    down_factor: int
    plan: TilePlan
    backends: Backends
    sizes: Sequence[SizeFigures]
    layers: int


def report_picture(page: ReportPage) -> Tensor:
    """float32 [1, height, width, 3]."""
    sheet = Sheet(_WIDTH, _HEIGHT)
    sheet.text((_EDGE, 36), f"CLEAR at {page.width} x {page.height} px", TITLE)
    sheet.text((_EDGE, 84), page.subtitle, BODY, MUTED)
    columns = [_EDGE + i * (_THIRD + _GAP) for i in range(3)]
    upper = [Box(left, _TOP, left + _THIRD, _LOWER - _GAP) for left in columns]
    _window(sheet, _panel(sheet, upper[0], "What one place of the image sees"), page)
    _tiles(sheet, _panel(sheet, upper[1], "How a kernel reads it: one tile"), page)
    _backends(sheet, _panel(sheet, upper[2], "Who computes it here"), page.backends)
    lower = [Box(left, _LOWER, left + _HALF, _BOTTOM) for left in (_EDGE, _EDGE + _HALF + _GAP)]
    layers = f"Attention of one step, {page.layers} layers"
    _attention(sheet, _panel(sheet, lower[0], layers, "TFLOP, logarithmic"), page)
    _memory(sheet, _panel(sheet, lower[1], "Memory of one step", "GiB, predicted, weights not counted"), page)
    return sheet.tensor()


def _panel(sheet: Sheet, box: Box, heading: str, note: str = "") -> Box:
    """A white field with its heading; the room inside."""
    sheet.rectangle(box, PANEL, RULE)
    sheet.text((box.left + 20, box.top + 16), heading, HEADING)
    sheet.text((box.right - 20, box.top + 21), note, SMALL, MUTED, "right")
    return Box(box.left + 20, box.top + 56, box.right - 20, box.bottom - 14)


def _window(sheet: Sheet, room: Box, page: ReportPage) -> None:
    grid, window = page.grid, page.window
    plan = TokenPlan.of(Box(room.left, room.top, room.right, room.bottom - 62), grid.height, grid.width)
    row, column = grid.height // 2, grid.width // 2
    if page.down_factor > 1:
        sheet.rectangle(plan.box, "#e6f1f2")
    step = next(step for step in (1, 4, 8, 16, 32, 64, 128) if step * plan.scale >= _FINEST or step == 128)
    draw_window(sheet, plan, window, row, column, LOCAL_SOFT)
    draw_lattice(sheet, plan, step)
    outline_window(sheet, plan, window, row, column, LOCAL)
    _mark(sheet, plan.cells(row, column, row + 1, column + 1), 2)
    inside = sum(
        max(0, min(column + window.half_width(y - row) + 1, grid.width) - max(column - window.half_width(y - row), 0))
        for y in range(max(0, row - window.halo), min(grid.height, row + window.halo + 1))
    )
    lattice = "a square is a token" if step == 1 else f"a line every {step} tokens"
    coarse = (
        f", and all of the image in cells of {page.down_factor} x {page.down_factor}" if page.down_factor > 1 else ""
    )
    _caption(
        sheet,
        room,
        [
            f"{inside:,} of {grid.tokens:,} tokens, {percent(inside / grid.tokens)} of the image ({lattice});",
            f"all of the text{coarse}.",
        ],
    )


def _tiles(sheet: Sheet, room: Box, page: ReportPage) -> None:
    tiles, (height, width), (box_height, box_width) = page.plan, page.plan.tile, page.plan.box
    across = math.ceil(page.grid.width / width)
    index = math.ceil(page.grid.height / height) // 2 * across + across // 2
    top, left = index // across * height, index % across * width
    first, masked, end = (int(edge) for edge in tiles.ranges[:, index])
    boxes = [(int(y), int(x)) for y, x in tiles.boxes[first:end]]
    rows = [min(top, *(y for y, _ in boxes)) - 2, max(y for y, _ in boxes) + box_height + 2]
    columns = [min(left, *(x for _, x in boxes)) - 2, max(x for _, x in boxes) + box_width + 2]
    view = Box(room.left, room.top, room.right, room.bottom - 62)
    plan = TokenPlan.of(view, rows[1] - rows[0], columns[1] - columns[0], rows[0], columns[0])
    sheet.rectangle(plan.cells(0, 0, page.grid.height, page.grid.width), "#f3f4f5")
    for number, (y, x) in enumerate(boxes, first):
        place = plan.cells(y, x, y + box_height, x + box_width)
        sheet.rectangle(place, LOCAL if number < masked else LOCAL_SOFT, PANEL, 1)
    bottom, right = min(top + height, page.grid.height), min(left + width, page.grid.width)
    sheet.rectangle(plan.cells(top, left, bottom, right), None, ACCENT, 3)
    _caption(
        sheet,
        room,
        [
            f"{height} x {width} queries (orange) read {end - first} boxes of {box_height} x {box_width} keys;",
            f"{masked - first} of them whole (dark), the others under a mask. {tiles.tiles:,} tiles.",
        ],
    )


def _backends(sheet: Sheet, room: Box, backends: Backends) -> None:
    y = room.top
    for backend in sorted(backends.every, key=lambda one: (one.name != backends.chosen, not one.able, one.share)):
        chosen = backend.name == backends.chosen
        colour = LOCAL if chosen else INK if backend.able else MUTED
        sheet.text((room.left, y), backend.name, BODY + 2, colour)
        if chosen:
            sheet.text((room.right, y + 1), "would run", BODY, LOCAL, "right")
        bar = Box(room.left, y + 29, room.right - 70, y + 39)
        draw_bar(sheet, bar, backend.share, LOCAL if chosen else DENSE, ground="#eceef0")
        sheet.text((room.right, y + 24), percent(backend.share), SMALL, INK if backend.able else MUTED, "right")
        y = sheet.paragraph((room.left, y + 47), backend.said, room.width, SMALL, MUTED, most=2) + 20
    if not backends.chosen:
        y = sheet.paragraph((room.left, y), backends.reason, room.width, SMALL, ACCENT, most=3)
    _caption(sheet, room, ["Bars: pairs computed; dense attention is 100 %."])


def _attention(sheet: Sheet, room: Box, page: ReportPage) -> None:
    sizes = page.sizes
    values = [value / 1e12 for size in sizes for value in (size.dense, size.clear)]
    low = 10 ** math.floor(math.log10(min(values)))
    decades = math.ceil(math.log10(max(values) / low)) or 1
    marks = [low * 10**i for i in range(decades + 1)]
    plot = _plot(
        sheet,
        room,
        page,
        [(math.log10(mark / low) / decades, f"{mark:,.0f}" if mark >= 1 else f"{mark:g}") for mark in marks],
    )
    for size, row in zip(sizes, _rows(plot, len(sizes)), strict=True):
        saved = f"{shown(size.clear / 1e12)}, {shown(size.dense / size.clear)} x less"
        for value, colour, place, label in (
            (size.dense, DENSE, _upper(row), shown(size.dense / 1e12)),
            (size.clear, LOCAL, _lower(row), saved),
        ):
            end = draw_bar(sheet, place, math.log10(value / 1e12 / low) / decades, colour)
            sheet.text((end + 8, place.top - 2), label, SMALL, MUTED if colour == DENSE else LOCAL)
    _legend(sheet, room, ("dense", "CLEAR"))


def _memory(sheet: Sheet, room: Box, page: ReportPage) -> None:
    sizes = page.sizes
    gib = 2**30
    largest = max(size.whole for size in sizes) / gib
    marks = ticks(largest)
    plot = _plot(sheet, room, page, [(mark / largest, f"{mark:g}") for mark in marks])
    for size, row in zip(sizes, _rows(plot, len(sizes)), strict=True):
        end = draw_bar(sheet, _upper(row), size.whole / gib / largest, DENSE)
        sheet.text((end + 8, _upper(row).top - 2), shown(size.whole / gib), SMALL, MUTED)
        if size.in_bands is not None:
            end = draw_bar(sheet, _lower(row), size.in_bands / gib / largest, LOCAL)
            label = f"{shown(size.in_bands / gib)} in {size.bands} bands"
            sheet.text((end + 8, _lower(row).top - 2), label, SMALL, LOCAL)
    cut = sizes[0].in_bands is not None
    _legend(sheet, room, ("dense, or CLEAR in one piece", "CLEAR in bands (CLEAR Multi-GPU)" if cut else ""))


def _plot(sheet: Sheet, room: Box, page: ReportPage, marks: Sequence[tuple[float, str]]) -> Box:
    """The axis with its marks, each a share of the width and a label, and a name for each size; the room for bars."""
    plot = Box(room.left + 116, room.top + 4, room.right - 130, room.bottom - 62)
    for share, label in marks:
        x = plot.left + share * plot.width
        sheet.line([(x, plot.top), (x, plot.bottom)], RULE)
        sheet.text((x, plot.bottom + 5), label, SMALL, MUTED, "middle")
    for size, row in zip(page.sizes, _rows(plot, len(page.sizes)), strict=True):
        given = (size.width, size.height) == (page.width, page.height)
        middle = (row.top + row.bottom) / 2 - 10
        sheet.text((plot.left - 12, middle), f"{size.width} x {size.height}", SMALL, ACCENT if given else INK, "right")
    return plot


def _rows(plot: Box, count: int) -> list[Box]:
    each = plot.height / count
    return [Box(plot.left, plot.top + i * each, plot.right, plot.top + (i + 1) * each) for i in range(count)]


def _upper(row: Box) -> Box:
    middle, thick = (row.top + row.bottom) / 2, min(16.0, row.height / 2 - 5)
    return Box(row.left, middle - thick - 1, row.right, middle - 1)


def _lower(row: Box) -> Box:
    middle, thick = (row.top + row.bottom) / 2, min(16.0, row.height / 2 - 5)
    return Box(row.left, middle + 1, row.right, middle + thick + 1)


def _legend(sheet: Sheet, room: Box, names: tuple[str, str]) -> None:
    x, y = room.left, room.bottom - 22
    for name, colour in zip(names, (DENSE, LOCAL), strict=True):
        if name:
            sheet.rectangle(Box(x, y + 2, x + 14, y + 16), colour)
            sheet.text((x + 22, y), name, SMALL, MUTED)
        x += 250


def _caption(sheet: Sheet, room: Box, lines: Sequence[str]) -> None:
    for number, line in enumerate(reversed(lines)):
        sheet.text((room.left, room.bottom - 20 - 22 * number), line, SMALL, MUTED)


def _mark(sheet: Sheet, cell: Box, least: int) -> None:
    """The token that asks, never too small to be seen."""
    x, y = (cell.left + cell.right) / 2, (cell.top + cell.bottom) / 2
    half = max(least, cell.width / 2)
    sheet.rectangle(Box(x - half, y - half, x + half, y + half), ACCENT)
