"""The picture of Distill CLEAR Weights: losses by step, each block before and after, sample images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...clear_core.distill.run import Point
from ...clear_core.show.figure import EDGE, GAP, TOP, WIDTH, Box, Page
from ...clear_core.show.theme import PRINT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHART, _TALLEST = 420, 520
_LOSS = "loss"
_PARTS = ("flow", "output", "attention")
_SMOOTH = 20  # a curve has about so many points, each the mean of its steps
_FEW = 60


@dataclass(frozen=True, slots=True)
class TrainingPage:
    """history: of all steps. pictures: [height, width, 3], 0 to 1, by the model that generated them."""

    title: str
    subtitle: str
    history: Sequence[Point]
    pictures: Mapping[str, Tensor]

    def page(self, theme: Theme = PRINT) -> Page:
        """1600 pixels wide."""
        count = max(1, len(self.pictures))
        width = (WIDTH - 2 * EDGE - (count - 1) * GAP) / count
        tall = min(_TALLEST, *(width * p.shape[0] / p.shape[1] for p in self.pictures.values())) if self.pictures else 0
        below = TOP + _CHART + GAP
        page = Page(round(below + (tall + 90 if self.pictures else 0) + EDGE), self.title, self.subtitle, theme)
        stages = list(dict.fromkeys(point.stage for point in self.history))
        wide = (WIDTH - 2 * EDGE - len(stages) * GAP) / (len(stages) + 1)
        for number, stage in enumerate(stages):
            left = EDGE + number * (wide + GAP)
            room = page.panel(Box(left, TOP, left + wide, TOP + _CHART), f"Loss, {stage}")
            points = [point for point in self.history if point.stage == stage]
            _losses(page, _inner(room), stage, points)
        most = max(stages, key=lambda stage: max(len(p.losses) for p in self.history if p.stage == stage))
        left = EDGE + len(stages) * (wide + GAP)
        room = page.panel(Box(left, TOP, left + wide, TOP + _CHART), "Each block", most)
        _blocks(page, _inner(room), [point for point in self.history if point.stage == most])
        for number, (name, image) in enumerate(self.pictures.items()):
            left = EDGE + number * (width + GAP)
            room = page.panel(Box(left, below, left + width, below + tall + 90), name)
            axes = page.axes(Box(room.left, room.top, room.right, room.top + tall), name)
            axes.imshow(image.numpy(), aspect="equal", interpolation="bilinear")
            axes.set(xticks=[], yticks=[])
        return page


def _inner(room: Box) -> Box:
    """Room for the ticks' labels."""
    return Box(room.left + 56, room.top + 6, room.right, room.bottom - 34)


def _losses(page: Page, box: Box, name: str, points: Sequence[Point]) -> None:
    axes = page.axes(box, name)
    names = [_LOSS, *(part for part in _PARTS if part in points[0].losses)]
    colours = (page.theme.blue, page.theme.orange, page.theme.grey, page.theme.light_blue)
    for part, colour in zip(names, colours, strict=False):
        values = [point.losses[part] for point in points]
        steps = [point.step for point in points]
        if len(points) > _FEW:
            axes.plot(steps, values, color=colour, lw=0.7, alpha=0.35)
        axes.plot(*_means(steps, values), color=colour, lw=2.2, marker="o" if len(points) < 3 else "")
    _scales(axes, page.theme)
    if len(names) > 1:
        page.legend(box.left + 8, box.top, list(zip(colours, names, strict=False)), columns=2)


def _means(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Steps and values, each the mean over a part of the run."""
    size = max(1, len(steps) // _SMOOTH)
    parts = [slice(start, start + size) for start in range(0, len(steps), size)]
    return ([sum(steps[p]) / len(steps[p]) for p in parts], [sum(values[p]) / len(values[p]) for p in parts])


def _blocks(page: Page, box: Box, points: Sequence[Point]) -> None:
    """The blocks' own losses at both ends of a stage."""
    names = [name for name in points[0].losses if name.startswith(("double ", "single "))]
    if not names:
        return
    axes = page.axes(box, "blocks")
    some = max(1, len(points) // 10)
    for part, colour in ((points[:some], page.theme.grey), (points[-some:], page.theme.blue)):
        axes.plot(
            [sum(p.losses[name] for p in part) / len(part) for name in names], color=colour, lw=2.2, marker="o", ms=4
        )
    page.legend(box.left + 8, box.top, [(page.theme.grey, "first steps"), (page.theme.blue, "last steps")], columns=2)
    shown = range(0, len(names), max(1, len(names) // 6))
    axes.set_xticks(list(shown), [f"{names[n][0]}{names[n].split()[1]}" for n in shown])
    _scales(axes, page.theme)


def _scales(axes: Axes, theme: Theme) -> None:
    axes.set_yscale("log")
    axes.grid(visible=True, which="major", color=theme.grid, lw=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
