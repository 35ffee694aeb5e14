"""The picture of CLEAR Factors: mass and error of each layer by radius, and the radius that each head needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...clear_core.show.figure import BODY, EDGE, GAP, SMALL, TOP, WIDTH, Box, Page
from ...clear_core.show.theme import PRINT, Theme
from ...clear_core.weights import BlockId
from .radius_study import RadiusStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHART, _HEADING = 470, 84  # pixels: of the curves, and of a panel around what it holds
_CELL, _LOWEST_CELL, _TALLEST = 34, 14, 620  # of the heat map
_NUMBERED = 34  # pixels of a cell, from which its number has room
_FEW = 20  # layers
_LABELS, _BAR = 150, 90  # left and right of the heat map
_COLOURS = "viridis_r"
_NOTE = "above: the mean of the heads at each timestep; below: each head, at all timesteps; grey: no radius passes"


def factors_page(study: RadiusStudy, theme: Theme = PRINT) -> Page:
    """1600 pixels wide; the height follows the number of heads."""
    rows = len(study.sigmas) + study.heads
    tall = max(_LOWEST_CELL * rows, min(_CELL * rows, _TALLEST)) + 12
    below = TOP + _CHART + GAP
    bottom = round(below + _HEADING + tall + 14)
    title = "No radius passes" if study.recommended is None else f"Recommended radius: {study.recommended}"
    noise = ", ".join(f"{sigma:.3g}" for sigma in study.sigmas)
    subtitle = f"{study.family}, {study.layout}; at sigma {noise}; {study.rows} queries of each layer and head"
    page = Page(bottom + 96, title, subtitle, theme)
    half = (WIDTH - 2 * EDGE - GAP) / 2
    note = "one line for each layer, at its worst timestep"
    for number, (name, values, bound) in enumerate(_curves(study)):
        left = EDGE + number * (half + GAP)
        room = page.panel(Box(left, TOP, left + half, TOP + _CHART), name, note)
        _chart(page, Box(room.left + 46, room.top + 6, room.right, room.bottom - 34), study, name, values, bound)
    room = page.panel(Box(EDGE, below, WIDTH - EDGE, bottom), "Radius that each layer needs", _NOTE)
    box = Box(room.left + _LABELS, room.top + 4, room.right - _BAR, room.top + 4 + tall)
    _heat_maps(page, box, study)
    page.text(EDGE, bottom + 20, "\n".join(study.verdict), BODY, theme.ink)
    return page


def _curves(study: RadiusStudy) -> list[tuple[str, Tensor, float]]:
    """Heading, values [layers, radii] and bound of each chart."""
    means = [torch.stack([torch.stack(one.curve.mean[1:]) for one in study.of_block(block)]) for block in study.blocks]
    # Each [timesteps, mass and error, radii, 1].
    mass = torch.stack([mean[:, 0, :, 0].amin(0) for mean in means])
    error = torch.stack([mean[:, 1, :, 0].amax(0) for mean in means])
    return [
        ("Attention to text and window", mass, study.request.least_mass),
        ("Error of the layer's output", error, study.request.most_error),
    ]


def _chart(page: Page, box: Box, study: RadiusStudy, name: str, values: Tensor, bound: float) -> None:
    theme, axes = page.theme, page.axes(box, name)
    colours = {"double": theme.blue, "single": theme.orange}
    alpha = 0.75 if len(values) <= _FEW else 0.4  # lines that lie over each other
    for block, line in zip(study.blocks, values, strict=True):
        axes.plot(
            study.radii, line, color=colours[block.kind], lw=1.6, alpha=alpha, zorder=2 + (block.kind == "double")
        )
    axes.axhline(bound, color=theme.muted, lw=1.5, ls="--", zorder=4)
    marks = [] if study.recommended is None else [(study.recommended, theme.ink, "recommended")]
    if study.request.radius and study.judged != study.recommended:
        marks.append((study.judged, theme.muted, "judged"))
    for radius, colour, _ in marks:
        axes.axvline(radius, color=colour, lw=2.0, zorder=4)
    axes.set(xlim=(study.radii[0], max(2, study.radii[-1], *(radius for radius, _, _ in marks))))
    axes.set_ylim(min(0.0, float(values.min())), max(1.0, min(2.0, float(values.max()))) * 1.02)
    axes.grid(visible=True, color=theme.grid, lw=0.6)
    axes.locator_params("x", integer=True)
    axes.set_xlabel("radius, image tokens", fontsize=SMALL, color=theme.muted)
    kinds = [(colours[kind], f"{kind} blocks") for kind in colours if any(b.kind == kind for b in study.blocks)]
    entries = [*kinds, (theme.muted, f"bound {bound:g}")]
    entries += [(colour, f"radius {radius}, {why}") for radius, colour, why in marks]
    # The empty corner: mass rises, errors fall.
    rising = float(values[:, -1].mean()) > float(values[:, 0].mean())
    top = box.bottom - 30 * len(entries) - 10 if rising else box.top + 8
    page.legend(box.right - 240, top, entries, columns=1)


def _heat_maps(page: Page, box: Box, study: RadiusStudy) -> None:
    """One for the means over heads at each timestep, one for the heads, over the same layers."""
    from matplotlib.ticker import MaxNLocator

    sigmas, blocks = study.sigmas, study.blocks
    at = {(layer.block, layer.sigma): study.needed([layer]) for layer in study.layers}
    means = [[at[block, sigma] for block in blocks] for sigma in sigmas]
    heads = list(zip(*(study.needed_by_head(block) for block in blocks), strict=True))
    row = (box.bottom - box.top - 12) / (len(means) + len(heads))
    split = box.top + row * len(means)
    upper = Box(box.left, box.top, box.right, split)
    lower = Box(box.left, split + 12, box.right, box.bottom)
    names = [f"sigma {sigma:.3g}" for sigma in sigmas]
    _heat_map(page, upper, "needed by timestep", means, names, study)
    axes = _heat_map(page, lower, "needed by head", heads, [f"head {head}" for head in range(len(heads))], study)
    step = -(-len(blocks) // 30)
    shown = range(0, len(blocks), step)
    axes.set_xticks(list(shown), [_name(blocks[i]) for i in shown])
    bar = page.axes(Box(box.right + 24, box.top, box.right + 42, box.bottom), "needed scale")
    scale = page.figure.colorbar(axes.images[0], bar, ticks=MaxNLocator(integer=True))
    scale.outline.set_visible(False)
    bar.tick_params(length=3, labelsize=SMALL, labelcolor=page.theme.muted)


def _heat_map(
    page: Page,
    box: Box,
    name: str,
    needed: Sequence[Sequence[int | None]],
    names: Sequence[str],
    study: RadiusStudy,
) -> Axes:
    axes = page.axes(box, name)
    values = torch.tensor([[float("nan") if radius is None else radius for radius in row] for row in needed])
    axes.set_facecolor(page.theme.grey)
    axes.set_frame_on(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.imshow(values.numpy(), _COLOURS, vmin=study.radii[0], vmax=study.radii[-1], aspect="auto")
    high, wide = (box.bottom - box.top) / len(names), (box.right - box.left) / values.shape[1]
    step = max(1, round(20 / high))
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.set_xticks([])
    if high >= 18 and wide >= _NUMBERED:
        middle = (study.radii[0] + study.radii[-1]) / 2
        for y, row in enumerate(needed):
            for x, radius in enumerate(row):
                dark = radius is not None and radius > middle
                axes.text(
                    x,
                    y,
                    "none" if radius is None else str(radius),
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color="#ffffff" if dark else "#101010",
                )
    return axes


def _name(block: BlockId) -> str:
    return f"{block.kind[0]}{block.index}"
