"""Pictures side by side as one image: a row for each prompt, a caption under each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_LINE = 16
_FONT = 12  # a caption of 40 letters fits under 256 pixels
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True, slots=True)
class Cell:
    picture: Image.Image
    caption: tuple[str, ...]
    """Lines, as many in every cell."""


def place(row: int, column: int, size: tuple[int, int], lines: int) -> tuple[int, int]:
    """The top left of a picture. size: of each picture. lines: of a caption."""
    height = _LINE + size[1] + lines * _LINE + 2 * _GAP
    return _GAP + column * (size[0] + _GAP), _GAP + row * height + _LINE


def sheet(rows: Sequence[tuple[str, Sequence[Cell]]]) -> Image.Image:
    """rows: a title, and pictures of one size from the left."""
    cells = rows[0][1]
    size, lines = cells[0].picture.size, len(cells[0].caption)
    right, bottom = place(len(rows), len(cells), size, lines)
    image = Image.new("RGB", (right, bottom - _LINE), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT)
    for row, (title, shown) in enumerate(rows):
        for column, cell in enumerate(shown):
            x, y = place(row, column, size, lines)
            if column == 0:
                draw.text((x, y - _LINE), title, _INK, font)
            image.paste(cell.picture, (x, y))
            for number, line in enumerate(cell.caption):
                draw.text((x, y + size[1] + 2 + number * _LINE), line, _INK, font)
    return image
