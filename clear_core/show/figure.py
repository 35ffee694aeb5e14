"""The report as one matplotlib figure: the window, one query tile, the backends, and the cost by size.

A `Page` is a figure that is laid out in pixels from the top left. It does without pyplot and changes no setting of
matplotlib, so that nothing else in the process notices.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..layout import Grid
from ..window import Window
from .cost import Report, SizeCost
from .numbers import percent, shown
from .theme import PRINT, Theme

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE, HEADING, BODY, SMALL = 33, 21, 17, 15
WIDTH, EDGE, GAP, TOP = 1600, 48, 28, 136
_HEIGHT, _LOWER = 1180, 700
_DPI = 72  # a point is a pixel


class Box(NamedTuple):
    """Pixels of a page from its top left corner; right and bottom lie outside."""

    left: float
    top: float
    right: float
    bottom: float


class Page:
    """A figure with a title and a subtitle. Raises RuntimeError where matplotlib cannot be imported."""

    def __init__(self, height: int, title: str, subtitle: str, theme: Theme = PRINT) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise RuntimeError(
                f"Drawing a picture needs the package matplotlib: {error}. Run pip install -r requirements.txt, the "
                "file of this pack, in the same Python environment, and start again."
            ) from error
        self.height = height
        self.theme = theme
        self.figure: Figure = Figure((WIDTH / _DPI, height / _DPI), _DPI, facecolor=self.theme.paper)
        self._canvas = FigureCanvasAgg(self.figure)
        self.text(EDGE, 36, title, TITLE)
        self.text(EDGE, 88, subtitle, BODY, self.theme.muted)

    def text(self, x: float, y: float, text: str, size: int = BODY, colour: str = "", align: str = "left") -> None:
        """Lines from y down, whose left or right end, as `align` says, is at x. colour: "" for the theme's ink."""
        for number, line in enumerate(text.split("\n")):
            self.figure.text(
                x / WIDTH,
                1 - (y + size * (0.95 + 1.4 * number)) / self.height,
                line,
                fontsize=size,
                color=colour or self.theme.ink,
                ha=align,
                va="baseline",
                parse_math=False,  # the name of a file may have a $ in it
            )

    def panel(self, box: Box, heading: str, note: str = "") -> Box:
        """A panel with its heading; the room inside."""
        from matplotlib.patches import Rectangle

        x, y, width, height = self._fractions(box)
        panel = Rectangle((x, y), width, height, fc=self.theme.panel, ec=self.theme.border, lw=1, zorder=-1)
        panel.set_transform(self.figure.transFigure)
        self.figure.add_artist(panel)
        self.text(box.left + 20, box.top + 16, heading, HEADING)
        self.text(box.right - 20, box.top + 20, note, SMALL, self.theme.muted, "right")
        return Box(box.left + 20, box.top + 58, box.right - 20, box.bottom - 14)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]], columns: int = 3) -> None:
        """Colours and what they mean, from a top left corner on."""
        from matplotlib.patches import Patch

        self.figure.legend(
            handles=[Patch(fc=colour, label=name) for colour, name in entries],
            loc="upper left",
            bbox_to_anchor=(x / WIDTH, 1 - y / self.height),
            ncols=columns,
            frameon=False,
            fontsize=SMALL,
            labelcolor=self.theme.ink,
            handlelength=1,
            handleheight=1,
            borderpad=0,
            borderaxespad=0,
        )

    def axes(self, box: Box, name: str) -> Axes:
        """Axes that fill a box, without a frame. name: their label, by which they are found again."""
        axes = self.figure.add_axes(self._fractions(box), label=name, frameon=False)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=self.theme.muted, pad=6)
        return axes

    def grid_axes(self, box: Box, name: str, grid: Grid) -> Axes:
        """Axes in image tokens: token (y, x) covers [x, x + 1] by [y, y + 1]."""
        axes = self.axes(box, name)
        axes.set(xlim=(0, grid.width), ylim=(grid.height, 0), aspect="equal", xticks=[], yticks=[])
        return axes

    def place_of(self, name: str) -> Box:
        """The pixels that the axes of this name fill, which an equal aspect makes smaller than the box given."""
        (axes,) = [axes for axes in self.figure.axes if axes.get_label() == name]
        axes.apply_aspect()
        extent = axes.get_window_extent()
        return Box(extent.x0, self.height - extent.y1, extent.x1, self.height - extent.y0)

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        import numpy as np

        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def save(self, path: Path) -> None:
        """Write a PNG. Raises OSError where it cannot be written."""
        self.figure.savefig(path, format="png", dpi=_DPI)

    def _fractions(self, box: Box) -> tuple[float, float, float, float]:
        width, height = box.right - box.left, box.bottom - box.top
        return box.left / WIDTH, 1 - box.bottom / self.height, width / WIDTH, height / self.height


def draw_window(axes: Axes, grid: Grid, window: Window, row: int, column: int, **style: Any) -> None:
    """The tokens in the window around a token, clipped at the image's border, as one polygon."""
    from matplotlib.patches import Polygon

    left, right = [], []
    for y in range(max(0, row - window.halo), min(grid.height, row + window.halo + 1)):
        reach = window.half_width(y - row)
        left += [(max(column - reach, 0), edge) for edge in (y, y + 1)]
        right += [(min(column + reach + 1, grid.width), edge) for edge in (y, y + 1)]
    axes.add_patch(Polygon([*left, *reversed(right)], closed=True, **style))


def report_page(report: Report, subtitle: str, theme: Theme = PRINT) -> Page:
    """The whole report on a page of 1600 x 1180 pixels."""
    page = Page(_HEIGHT, f"CLEAR at {report.width} x {report.height} px", subtitle, theme)
    third = (WIDTH - 2 * EDGE - 2 * GAP) / 3
    upper = [Box(left, TOP, left + third, _LOWER - GAP) for left in (EDGE + i * (third + GAP) for i in range(3))]
    half = (WIDTH - 2 * EDGE - GAP) / 2
    lower = [Box(left, _LOWER, left + half, _HEIGHT - 44) for left in (EDGE, EDGE + half + GAP)]
    _window(page, page.panel(upper[0], "Attention window of one image token"), report)
    _tiles(page, page.panel(upper[1], "One query tile and its key tiles"), report)
    _backends(page, page.panel(upper[2], "Backends here", "pairs computed, dense: 100 %"), report)
    heading = f"Attention in one step, {report.model.layers} layers"
    _attention(page, page.panel(lower[0], heading, "TFLOP, logarithmic"), report)
    _memory(page, page.panel(lower[1], "Memory in one step", "GiB, predicted, without the weights"), report)
    return page


def _window(page: Page, room: Box, report: Report) -> None:
    from matplotlib.patches import Rectangle

    grid, window, (row, column), factor = report.grid, report.options.window, report.query, report.options.down_factor
    axes = page.grid_axes(Box(room.left, room.top, room.right, room.bottom - 72), "window", grid)
    scale = min((room.right - room.left) / grid.width, (room.bottom - room.top - 72) / grid.height)
    steps = [factor * 2**i for i in range(12)]
    step = next(step for step in steps if step * scale >= 6)  # pixels between two lines
    ground = page.theme.ground if factor > 1 else page.theme.panel
    axes.add_patch(Rectangle((0, 0), grid.width, grid.height, fc=ground, ec=page.theme.muted, lw=1, clip_on=False))
    draw_window(axes, grid, window, row, column, fc=page.theme.light_blue, lw=0)
    axes.vlines(range(0, grid.width + 1, step), 0, grid.height, colors=page.theme.grid, lw=0.6)
    axes.hlines(range(0, grid.height + 1, step), 0, grid.width, colors=page.theme.grid, lw=0.6)
    draw_window(axes, grid, window, row, column, fill=False, ec=page.theme.blue, lw=2, zorder=3)
    if report.bands is not None:
        borders = [band.start for band in report.bands.bands[1:]]
        axes.hlines(borders, 0, grid.width, colors=page.theme.orange, lw=1.2, linestyles="dashed", zorder=3)
    axes.plot(
        column + 0.5, row + 0.5, "s", color=page.theme.orange, mec=page.theme.panel, mew=0.8, ms=max(7, scale), zorder=4
    )
    share = percent(report.window_tokens / grid.tokens)
    coarse = f", {report.pattern.pooled:,} down-sampled tokens" if factor > 1 else ""
    lines = f"Grid lines every {step} tokens." if step > 1 else "Grid lines at every token."
    dashed = f" Dashed: {len(report.bands.bands)} bands." if report.bands is not None else ""
    text = (
        f"{report.window_tokens:,} of {grid.tokens:,} image tokens ({share}), all text tokens{coarse}. {lines}{dashed}"
    )
    _paragraph(page, room.left, room.bottom - 60, text, 3, page.theme.muted)


def _tiles(page: Page, room: Box, report: Report) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    plan, view, grid = report.tiles, report.middle_tile, report.grid
    (height, width), (key_height, key_width) = plan.tile, plan.box
    (top, left), keys = view.query, view.keys
    axes = page.axes(Box(room.left, room.top, room.right, room.bottom - 72), "tile")
    axes.add_patch(Rectangle((0, 0), grid.width, grid.height, fc=page.theme.light_grey, lw=0))
    rectangles = [Rectangle((x, y), key_width, key_height) for y, x in keys]
    colours = [page.theme.blue if i < view.full else page.theme.light_blue for i in range(len(keys))]
    axes.add_collection(PatchCollection(rectangles, fc=colours, ec=page.theme.panel, lw=1))
    query = Rectangle((left, top), min(width, grid.width - left), min(height, grid.height - top))
    query.set(fill=False, ec=page.theme.orange, lw=3.5, zorder=3)
    axes.add_patch(query)
    rows, columns = [y for y, _ in keys], [x for _, x in keys]
    axes.set(
        xlim=(min(left, *columns) - 2, max(columns) + key_width + 2),
        ylim=(max(rows) + key_height + 2, min(top, *rows) - 2),
        aspect="equal",
        xticks=[],
        yticks=[],
    )
    text = (
        f"{height} x {width} queries (orange) visit {len(keys)} tiles of {key_height} x {key_width} keys: {view.full} "
        f"full (stronger blue), {len(keys) - view.full} partial (masked). {plan.tiles:,} query tiles in all."
    )
    _paragraph(page, room.left, room.bottom - 60, text, 3, page.theme.muted)


def _backends(page: Page, room: Box, report: Report) -> None:
    table, y = report.backends, room.top
    for backend in sorted(table.backends, key=lambda one: (one.name != table.chosen, not one.able, one.share)):
        chosen = backend.name == table.chosen
        colour = page.theme.blue_text if chosen else page.theme.ink if backend.able else page.theme.muted
        page.text(room.left, y, backend.name, BODY, colour)
        page.text(room.right, y, "chosen" if chosen else "", BODY, page.theme.blue_text, "right")
        axes = page.axes(Box(room.left, y + 29, room.right - 70, y + 41), f"backend {backend.name}")
        axes.barh(0, 1, color=page.theme.light_grey)
        axes.barh(0, min(1, backend.share), color=page.theme.blue if chosen else page.theme.grey)
        axes.set(xlim=(0, 1), ylim=(-0.4, 0.4), xticks=[], yticks=[])
        page.text(room.right, y + 25, percent(backend.share), SMALL, colour, "right")
        y = _paragraph(page, room.left, y + 48, backend.note, 2, page.theme.muted) + 18
    if not table.chosen:
        _paragraph(page, room.left, y, table.reason, 3, page.theme.orange_text)


def _attention(page: Page, room: Box, report: Report) -> None:
    dense, clear = ([value / 1e12 for value in values] for values in zip(*_operations(report.sizes), strict=True))
    notes = [f"{shown(c)}, {shown(d / c)} times less" for d, c in zip(dense, clear, strict=True)]
    low, high = (10 ** edge(math.log10(v)) for edge, v in ((math.floor, min(clear)), (math.ceil, max(dense))))
    axes = _bars(page, room, report, "attention", (dense, [shown(value) for value in dense]), (clear, notes))
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.35)
    axes.set_xticks([10.0**i for i in range(round(math.log10(low)), round(math.log10(high)) + 1)], minor=False)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:,g}")
    page.legend(room.left, room.bottom - 24, [(page.theme.grey, "dense"), (page.theme.blue, "CLEAR")])


def _memory(page: Page, room: Box, report: Report) -> None:
    stock = [size.stock / 2**30 for size in report.sizes]
    banded = [0.0 if size.banded is None else size.banded / 2**30 for size in report.sizes]
    notes = [f"{shown(b)} in {size.bands} bands" if b else "" for b, size in zip(banded, report.sizes, strict=True)]
    axes = _bars(page, room, report, "memory", (stock, [shown(value) for value in stock]), (banded, notes))
    axes.set_xlim(0, max(*stock, *banded) * 1.35)
    axes.locator_params("x", nbins=6)
    entries = [
        (page.theme.grey, "dense, or CLEAR without bands"),
        (page.theme.blue, "CLEAR in bands (CLEAR Multi-GPU)"),
    ]
    page.legend(room.left, room.bottom - 24, entries if any(banded) else entries[:1])


def _operations(sizes: Sequence[SizeCost]) -> list[tuple[int, int]]:
    return [(size.dense, size.clear) for size in sizes]


def _bars(page: Page, room: Box, report: Report, name: str, *pairs: tuple[Sequence[float], Sequence[str]]) -> Axes:
    """Two bars for each size, each with its values and their labels: dense above, CLEAR below."""
    axes = page.axes(Box(room.left + 118, room.top, room.right, room.bottom - 62), name)
    rows = range(len(report.sizes))
    for (values, labels), offset, colour, ink in zip(
        pairs, (-0.19, 0.19), (page.theme.grey, page.theme.blue), (page.theme.muted, page.theme.blue_text), strict=True
    ):
        bars = axes.barh([row + offset for row in rows], values, 0.36, color=colour, zorder=2)
        axes.bar_label(bars, labels, padding=7, fontsize=SMALL, color=ink)
    axes.set_yticks(rows, [f"{size.width} x {size.height}" for size in report.sizes])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for size, label in zip(report.sizes, axes.get_yticklabels(), strict=True):
        label.set_color(
            page.theme.orange_text if (size.width, size.height) == (report.width, report.height) else page.theme.ink
        )
    axes.grid(axis="x", color=page.theme.border, lw=1)
    axes.set_axisbelow(True)
    return axes


def _paragraph(page: Page, x: float, y: float, text: str, most: int, colour: str) -> float:
    """At most so many lines, as wide as a panel; where the next would begin."""
    lines = textwrap.wrap(text, 52, max_lines=most, placeholder=" ...")
    page.text(x, y, "\n".join(lines), SMALL, colour)
    return y + 21 * len(lines)
