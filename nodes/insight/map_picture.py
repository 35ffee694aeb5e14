"""What the page needs in order to show the maps of CLEAR Attention Map, and to take a click on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from ...clear_core.show.figure import WIDTH, Page
from .map_figure import MapFigure


class Map(TypedDict):
    """One of the maps. place: left, top, width, height, in pixels of the picture."""

    name: str
    place: tuple[float, float, float, float]


class MapPicture(TypedDict):
    """The picture as ComfyUI's /view takes it, and the maps in it. size: width and height in pixels.

    grid: rows and columns of image tokens of a map. query: the row and column that the run has looked at.
    """

    filename: str
    subfolder: str
    type: str
    size: tuple[int, int]
    maps: list[Map]
    grid: tuple[int, int]
    query: tuple[int, int]


def map_picture(figure: MapFigure, page: Page, saved: Mapping[str, str]) -> MapPicture:
    """page: as `map_page` made it. saved: the file it was saved to."""
    row, grid = figure.row, figure.row.layout.image
    places = [(name, page.place_of(name)) for name in figure.names]
    maps = [
        Map(name=name, place=(box.left, box.top, box.right - box.left, box.bottom - box.top)) for name, box in places
    ]
    return MapPicture(
        filename=saved["filename"],
        subfolder=saved["subfolder"],
        type=saved["type"],
        size=(WIDTH, page.height),
        maps=maps,
        grid=(grid.height, grid.width),
        query=(row.row, row.column),
    )
