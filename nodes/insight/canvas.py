"""A page of figures for a person: text, rectangles, bars and heat maps with PIL, as an IMAGE.

Letters are those of PIL's own font, which has the Latin ones only and needs no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ...clear_core.window import Window

PAPER, PANEL, RULE = "#fbfaf7", "#ffffff", "#dcdfe3"
INK, MUTED = "#1d2730", "#67727e"
DENSE, LOCAL, LOCAL_SOFT, ACCENT = "#a3abb5", "#1f7a8c", "#a9d3d9", "#e0752d"
TITLE, HEADING, BODY, SMALL = 34, 21, 17, 15
Colour = str
_HEAT = ("#20242c", "#3b2f63", "#7d2f78", "#c4425f", "#ef7f4b", "#fbc66a", "#fdf6c9")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the page, in pixels; right and bottom lie outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def fitted(self, width: float, height: float) -> Box:
        """The largest box of these proportions, centred in this one."""
        scale = min(self.width / width, self.height / height)
        left = self.left + (self.width - width * scale) / 2
        top = self.top + (self.height - height * scale) / 2
        return Box(round(left), round(top), round(left + width * scale), round(top + height * scale))


class Sheet:
    """A page that is drawn on. Sizes in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, box: Box, fill: Colour | None, outline: Colour | None = None, width: int = 1) -> None:
        left, top, right, bottom = (round(edge) for edge in (box.left, box.top, box.right, box.bottom))
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill, outline, width)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: int = 1) -> None:
        self._draw.line([(round(x), round(y)) for x, y in points], colour, width)

    def text(
        self,
        place: tuple[float, float],
        text: str,
        size: int = BODY,
        colour: Colour = INK,
        align: Literal["left", "middle", "right"] = "left",
    ) -> None:
        """One line; the place is its top, at the left, the middle or the right end."""
        anchor = {"left": "la", "middle": "ma", "right": "ra"}[align]
        self._draw.text(place, text, fill=colour, font=_font(size), anchor=anchor)

    def paragraph(
        self,
        place: tuple[float, float],
        text: str,
        width: float,
        size: int = BODY,
        colour: Colour = INK,
        most: int = 99,
    ) -> float:
        """Lines broken to a width, `most` at most; where the next would begin."""
        lines = _broken(text, width, size)
        if len(lines) > most:
            lines = [*lines[: most - 1], lines[most - 1] + " ..."]
        for line in lines:
            self.text(place, line, size, colour)
            place = (place[0], place[1] + round(size * 1.4))
        return place[1]

    def picture(self, box: Box, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3], a box's own size in whole pixels."""
        self._image.paste(Image.fromarray(pixels), (round(box.left), round(box.top)))

    def tensor(self) -> Tensor:
        """The page as an IMAGE: float32 [1, height, width, 3], 0 to 1."""
        return torch.from_numpy(np.array(self._image)).float()[None] / 255


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """A part of a token grid laid out in a box of the page: rows and columns from an origin, `scale` pixels each."""

    box: Box
    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def of(cls, room: Box, rows: int, columns: int, top: int = 0, left: int = 0) -> TokenPlan:
        return cls(room.fitted(columns, rows), top, left, rows, columns)

    @property
    def scale(self) -> float:
        return self.box.width / self.columns

    def cells(self, top: int, left: int, bottom: int, right: int) -> Box:
        """The pixels of tokens from (top, left) to before (bottom, right), cut at the plan's border."""
        rows = [min(max(row - self.top, 0), self.rows) for row in (top, bottom)]
        columns = [min(max(column - self.left, 0), self.columns) for column in (left, right)]
        across, down = self.box.width / self.columns, self.box.height / self.rows
        return Box(
            self.box.left + columns[0] * across,
            self.box.top + rows[0] * down,
            self.box.left + columns[1] * across,
            self.box.top + rows[1] * down,
        )


def draw_lattice(sheet: Sheet, plan: TokenPlan, step: int, colour: Colour = RULE) -> None:
    """A line at every `step` tokens, and the border."""
    for row in range(-plan.top % step + plan.top, plan.top + plan.rows, step):
        y = plan.cells(row, 0, row, 0).top
        sheet.line([(plan.box.left, y), (plan.box.right - 1, y)], colour)
    for column in range(-plan.left % step + plan.left, plan.left + plan.columns, step):
        x = plan.cells(0, column, 0, column).left
        sheet.line([(x, plan.box.top), (x, plan.box.bottom - 1)], colour)
    sheet.rectangle(plan.box, None, MUTED)


def window_rows(window: Window, row: int, column: int) -> Iterator[tuple[int, int, int]]:
    """The window around a token: its rows, and of each the first column and the one after the last."""
    for dy in range(-window.halo, window.halo + 1):
        reach = window.half_width(dy)
        yield row + dy, column - reach, column + reach + 1


def draw_window(sheet: Sheet, plan: TokenPlan, window: Window, row: int, column: int, colour: Colour) -> None:
    """The tokens of the window, filled."""
    for y, left, right in window_rows(window, row, column):
        sheet.rectangle(plan.cells(y, left, y + 1, right), colour)


def outline_window(sheet: Sheet, plan: TokenPlan, window: Window, row: int, column: int, colour: Colour) -> None:
    """The border of the window, along its tokens; where it leaves the image, along the image's border."""
    rows = [plan.cells(y, left, y + 1, right) for y, left, right in window_rows(window, row, column)]
    rows = [box for box in rows if box.height > 0]
    corners = [(box.left, y) for box in rows for y in (box.top, box.bottom)]
    corners += [(box.right, y) for box in reversed(rows) for y in (box.bottom, box.top)]
    corners.append(corners[0])
    inside = [(min(x, plan.box.right - 1), min(y, plan.box.bottom - 1)) for x, y in corners]
    sheet.line(inside, colour, 2)


def draw_bar(sheet: Sheet, box: Box, share: float, colour: Colour, *, ground: Colour | None = None) -> float:
    """A bar from the left over a share of the box, at least a hair wide; where it ends."""
    if ground:
        sheet.rectangle(box, ground)
    end = box.left + max(2.0, box.width * min(1.0, share)) if share > 0 else box.left
    sheet.rectangle(Box(box.left, box.top, end, box.bottom), colour)
    return end


def heat(values: np.ndarray) -> np.ndarray:
    """Values of 0 to 1 as colours from dark to light: uint8 [..., 3]."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _HEAT], dtype=np.float64)
    at = np.linspace(0, 1, len(stops))
    return (
        np.stack([np.interp(values, at, stops[:, channel]) for channel in range(3)], axis=-1).round().astype(np.uint8)
    )


def on_decades(values: Tensor, largest: float, decades: float) -> Tensor:
    """0 for what is `decades` powers of ten below the largest or less, 1 for the largest."""
    floor = largest * 10**-decades
    return (values.clamp(min=floor) / floor).log10() / decades


def resized(values: Tensor, box: Box) -> np.ndarray:
    """[rows, columns] as [height, width] of a box: tokens become blocks; where there is no room, their largest."""
    height, width = round(box.height), round(box.width)
    image = values[None, None]
    if values.shape[0] > height or values.shape[1] > width:
        image = F.adaptive_max_pool2d(image, (min(height, values.shape[0]), min(width, values.shape[1])))
    return F.interpolate(image, (height, width), mode="nearest-exact")[0, 0].numpy()


def ticks(largest: float, room: int = 5) -> list[float]:
    """Round numbers from 0 up to the largest, `room` at most besides 0."""
    if largest <= 0:
        return [0.0]
    power = 10 ** math.floor(math.log10(largest / room))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * room >= largest)
    return [step * i for i in range(math.floor(largest / step) + 1)]


def shown(value: float) -> str:
    """A number with three digits: 0.0421, 3.14, 27.2, 415, 12,300."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}"


def percent(share: float) -> str:
    """A share of 0 to 1 as a person writes it: 83 %, 4.8 %, 0.03 %."""
    value = share * 100
    if 0 < value < 0.01:
        return "below 0.01 %"
    if 99.5 <= value < 99.95:
        return f"{value:.1f} %"  # not all of it
    return f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _broken(text: str, width: float, size: int) -> list[str]:
    font = _font(size)
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for word in part.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
