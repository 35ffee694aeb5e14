"""A contact sheet: labelled pictures in columns and rows, in blocks; legible when shown small, bounded in size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...clear_core.show.theme import PRINT, Theme

_SIDE: Final = 4096  # pixels; wider or taller only where the labels ask for it
_PIXELS: Final = 12e6  # of all pictures together
_LARGEST, _NARROWEST = 1024, 192  # pixels of a picture's longer side, and of a column


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and the lines under it."""

    picture: Image.Image
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The pictures of one seed. title: "" for none. dense: the picture before the first column of the first row.

    rows: the label of each, "" for none, and its pictures, one for each column.
    """

    title: str
    dense: Shown | None
    rows: tuple[tuple[str, tuple[Shown, ...]], ...]


def scaled(image: Tensor, columns: int, pictures: int) -> Image.Image:
    """An image [height, width, 3], 0 to 1, no larger than a sheet with so many columns and pictures has room for."""
    whole = Image.fromarray(image.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
    side = min(_LARGEST, _SIDE // columns, math.isqrt(int(_PIXELS / pictures)))
    whole.thumbnail((side, side), Image.Resampling.LANCZOS)
    return whole


def contact_sheet(
    title: str, subtitle: str, columns: Sequence[str], blocks: Sequence[Block], theme: Theme = PRINT
) -> Tensor:
    """The sheet as an IMAGE: float32 [1, height, width, 3], 0 to 1. columns: the label of each."""
    sheet = _Sheet(columns, blocks, theme)
    return torch.from_numpy(np.asarray(sheet.draw(title, subtitle)).copy()).float()[None] / 255


class _Sheet:
    """Blocks stand under each other, and side by side where the sheet would become too tall."""

    def __init__(self, columns: Sequence[str], blocks: Sequence[Block], theme: Theme) -> None:
        self._blocks, self._theme = blocks, theme
        self._columns = (["dense"] if any(block.dense for block in blocks) else []) + list(columns)
        shown = [one for block in blocks for one in (block.dense, *(s for _, row in block.rows for s in row)) if one]
        self._cell = (max(_NARROWEST, *(s.picture.width for s in shown)), max(s.picture.height for s in shown))
        self._lines = max(len(one.lines) for one in shown)
        self._size = max(13, min(56, self._cell[0] // 16))
        self._font, self._title_font = (ImageFont.load_default(self._size * scale) for scale in (1, 1.4))
        self._line, self._gap = round(self._size * 1.4), max(8, self._size)

    @cached_property
    def _block(self) -> tuple[int, int]:
        """Width and height of the tallest block, with the gap after it."""
        row = self._cell[1] + self._lines * self._line + self._gap
        tallest = max(sum(row + (self._line if label else 0) for label, _ in block.rows) for block in self._blocks)
        title = self._line if any(block.title for block in self._blocks) else 0
        return len(self._columns) * (self._cell[0] + self._gap), title + self._line + tallest + self._gap

    def draw(self, title: str, subtitle: str) -> Image.Image:
        (width, height), head = self._block, 3 * self._line + self._gap
        most = max(1, _SIDE // width)
        across = next((n for n in range(1, most) if -(-len(self._blocks) // n) * height <= _SIDE), most)
        across = min(across, len(self._blocks))
        down = -(-len(self._blocks) // across)
        sheet = Image.new("RGB", (across * width + self._gap, head + down * height), self._theme.paper)
        self._draw = ImageDraw.Draw(sheet)
        room = sheet.width - 2 * self._gap
        self._write(self._gap, self._gap, title, room, self._theme.ink, self._title_font)
        self._write(self._gap, self._gap + round(1.5 * self._line), subtitle, room, self._theme.muted)
        for number, block in enumerate(self._blocks):
            row, column = divmod(number, across)
            self._add(sheet, self._gap + column * width, head + row * height, block)
        return sheet

    def _add(self, sheet: Image.Image, left: int, y: int, block: Block) -> None:
        step, ink = self._cell[0] + self._gap, self._theme.ink
        if block.title:
            self._write(left, y, block.title, len(self._columns) * step - self._gap, ink)
            y += self._line
        for number, name in enumerate(self._columns):
            self._write(left + number * step, y, name, self._cell[0], self._theme.blue_text)
        y += self._line
        first = len(self._columns) - len(block.rows[0][1])
        for number, (label, shown) in enumerate(block.rows):
            if label:
                self._write(left + first * step, y, label, len(shown) * step - self._gap, self._theme.blue_text)
                y += self._line
            if number == 0 and block.dense is not None:
                self._place(sheet, left, y, block.dense)
            for column, one in enumerate(shown, first):
                self._place(sheet, left + column * step, y, one)
            y += self._cell[1] + self._lines * self._line + self._gap

    def _place(self, sheet: Image.Image, x: int, y: int, shown: Shown) -> None:
        sheet.paste(shown.picture, (x, y))
        for number, line in enumerate(shown.lines):
            top = y + self._cell[1] + round(0.15 * self._line) + number * self._line
            self._write(x, top, line, self._cell[0], self._theme.ink if number == 0 else self._theme.muted)

    def _write(self, x: int, y: int, text: str, room: int, colour: str, font: Any = None) -> None:
        """A line, cut where there is no room for it."""
        font = font or self._font
        if font.getlength(text) > room:
            while text and font.getlength(text + "...") > room:
                text = text[:-1]
            text += "..."
        self._draw.text((x, y), text, colour, font)
