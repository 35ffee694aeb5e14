"""Does a picture show what its description says, and is it of one piece?

Works on any picture, drawn or generated, of any size. It knows the colours and outlines of `scenes` and nothing of the
model. Coherence is about what the description leaves open: distant parts of a picture must agree with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import scenes
from .scenes import Colour, Description, Image, Scene

_SIDE = 256  # pictures are looked at in this size
_NEAR = 75.0  # a colour's distance, of 255 for each of three, up to which it counts as that colour
_ROWS = 16  # in which an outline is compared


@dataclass(frozen=True, slots=True)
class Score:
    """Of one picture."""

    count: bool
    colour: bool
    thing: bool
    ground: bool
    sky: bool
    light: bool
    parts: Mapping[str, float]
    """Coherence, 0 to 1, of what can be judged in this picture: horizon, reflection, stripes, size, mark."""

    @property
    def right(self) -> bool:
        """Everything that the description says."""
        return self.count and self.colour and self.thing and self.ground and self.sky and self.light

    @property
    def coherence(self) -> float:
        """The mean of the parts."""
        return float(np.mean(list(self.parts.values()))) if self.parts else 0.0


def score(image: Image, description: Description) -> Score:
    """image: [height, width, 3], 0 to 1."""
    pixels = _resized(image) * 255
    axis = _axis(pixels) if description.ground == "by a lake" else _SIDE
    objects = _objects(pixels[:axis], description.colour)
    return Score(
        count=len(objects) == description.number,
        colour=bool(objects) and _colour(pixels) == description.colour,
        thing=bool(objects) and all(_thing(one.outline) == description.thing for one in objects),
        ground=_ground(pixels) == description.ground,
        sky=_sky(pixels) == description.sky,
        light=_light(pixels) == description.light,
        parts=_coherence(pixels, objects, description, axis),
    )


@dataclass(frozen=True, slots=True)
class _Object:
    """Something of the described colour. Rows and columns in pixels."""

    left: int
    right: int
    top: int
    bottom: int
    outline: NDArray[np.float64]
    """[_ROWS]: the width at each height, in parts of the whole height."""
    mark: int

    @property
    def height(self) -> int:
        return self.bottom - self.top


def _objects(pixels: Image, colour: str) -> list[_Object]:
    """From the left: runs of columns that hold the colour."""
    mask = _like(pixels, scenes.COLOURS[colour], scenes.COLOURS.values())
    columns = mask.sum(0) >= 0.02 * _SIDE
    found = []
    for left, right in _runs(columns, gap=3):
        rows = np.flatnonzero(mask[:, left:right].sum(1) >= 2)
        if right - left < 0.05 * _SIDE or len(rows) < 0.08 * _SIDE:
            continue
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        outline = _outline(mask[top:bottom, left:right])
        inside = pixels[top:bottom, left:right].reshape(-1, 3)
        distances = [np.linalg.norm(inside - np.array(mark), axis=1) for mark in scenes.MARKS]
        mark = int(np.argmax([(distance < 60).sum() for distance in distances]))
        found.append(_Object(left, right, top, bottom, outline, mark))
    return found


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Widths from a mask's first to its last pixel in each row; rows without any are interpolated."""
    height = len(mask)
    rows = np.flatnonzero(mask.any(1))
    widths = [np.flatnonzero(mask[row])[[0, -1]] for row in rows]
    spans = np.array([last - first + 1 for first, last in widths]) / height
    return np.interp((np.arange(_ROWS) + 0.5) / _ROWS * height, rows, spans)


def _thing(outline: NDArray[np.float64]) -> str:
    return min(scenes.THINGS, key=lambda one: float(np.abs(outline - _outline_of(one)).mean()))


@cache
def _outline_of(thing: str) -> NDArray[np.float64]:
    """As `scenes` draws it."""
    description = Description("one", "red", thing, "on a meadow", "blue sky", "no sun")
    scene = Scene.of(description, np.random.Generator(np.random.PCG64(0)))
    return _objects(scenes.draw(scene, _SIDE) * 255, description.colour)[0].outline


def _colour(pixels: Image) -> str:
    """The colour of objects that covers most of the picture."""
    colours = scenes.COLOURS
    return max(colours, key=lambda name: int(_like(pixels, colours[name], colours.values()).sum()))


def _ground(pixels: Image) -> str:
    """From the lowest eighth of the picture."""
    rows = pixels[-_SIDE // 8 :].reshape(-1, 3)
    field = [scenes.GROUNDS["in a striped field"], scenes.STRIPE]
    palettes: dict[str, list[Colour]] = {name: [colour] for name, colour in scenes.GROUNDS.items()}
    palettes["by a lake"] = [tuple(scenes.in_water(np.array(colour))) for colour in scenes.SKIES[_sky(pixels)]]
    palettes["in a striped field"] = field
    best = _nearest_palette(rows, palettes)
    if best in ("on a meadow", "in a striped field"):
        # Greens: a field has both of its own in plenty.
        stripes = float((_distance(rows, field[1]) < _distance(rows, scenes.GROUNDS["on a meadow"])).mean())
        return "in a striped field" if stripes > 0.15 else "on a meadow"
    return best


def _sky(pixels: Image) -> str:
    """From the uppermost rows."""
    return _nearest(np.median(pixels[:12], axis=(0, 1)), {name: colours[0] for name, colours in scenes.SKIES.items()})


def _light(pixels: Image) -> str:
    sun = _distance(pixels[: _SIDE // 4], scenes.SUN) < 40
    if sun.mean() * 0.25 < 0.004:  # of the picture; a whole disc is 0.013
        return scenes.LIGHTS[0]
    return scenes.LIGHTS[1] if np.nonzero(sun)[1].mean() < _SIDE / 2 else scenes.LIGHTS[2]


# ---- coherence ---------------------------------------------------------------------------------------


def _coherence(pixels: Image, objects: list[_Object], description: Description, axis: int) -> dict[str, float]:
    """axis: of the reflection, where there is one."""
    parts = {}
    if description.ground == "by a lake":
        parts["reflection"] = _reflection(pixels, axis)
    else:
        parts["horizon"] = _horizon(pixels, objects, description)
    if description.ground == "in a striped field":
        parts["stripes"] = _stripes(pixels)
    if description.number > 1:
        heights = np.array([one.height for one in objects])
        enough = len(objects) > 1
        parts["size"] = max(0.0, 1 - float(np.ptp(heights) / heights.mean()) / 0.3) if enough else 0.0
        marks = [one.mark for one in objects]
        parts["mark"] = max(marks.count(mark) for mark in marks) / description.number if enough else 0.0
    return parts


def _horizon(pixels: Image, objects: Iterable[_Object], description: Description) -> float:
    """The share of free columns in which the ground begins within a hundredth of the usual height."""
    colours = [scenes.GROUNDS[description.ground]]
    if description.ground == "in a striped field":
        colours.append(scenes.STRIPE)
    own = np.min([_distance(pixels, colour) for colour in colours], axis=0)
    beyond = (scenes.hills(description), scenes.SKIES[description.sky][1])
    near = own < np.min([_distance(pixels, colour) for colour in beyond], axis=0)
    free = np.ones(_SIDE, bool)
    for one in objects:
        free[max(0, one.left - 4) : one.right + 4] = False
    if free.sum() < 0.1 * _SIDE:
        free[:] = True
    # From below, the first row that is not ground.
    first = _SIDE - np.argmin(near[::-1], axis=0)[free]
    middle = float(np.median(first))
    if not 0.3 * _SIDE < middle < 0.8 * _SIDE:
        return 0.0  # no ground, or nothing else
    return float((np.abs(first - middle) <= 0.012 * _SIDE).mean())


def _axis(pixels: Image) -> int:
    """The row about which the picture is best mirrored, as a lake does."""
    return min(range(int(0.42 * _SIDE), int(0.68 * _SIDE)), key=lambda row: _mirror_error(pixels, row))


def _mirror_error(pixels: Image, row: int) -> float:
    depth = _depth(row)
    mirrored = scenes.in_water(pixels[row - depth : row][::-1])
    return float(np.abs(pixels[row : row + depth] - mirrored).mean())


def _depth(row: int) -> int:
    """Of the rows on either side of an axis that are compared."""
    return min(row, _SIDE - row, int(0.35 * _SIDE))


def _reflection(pixels: Image, row: int) -> float:
    """One without error; zero where the mirrored part is as far off as its own mean colour would be."""
    below = pixels[row : row + _depth(row)]
    alone = float(np.abs(below - below.mean((0, 1))).mean())
    return max(0.0, 1 - _mirror_error(pixels, row) / max(alone, 1.0))


def _stripes(pixels: Image) -> float:
    """How well one square wave explains the brightness along the ground."""
    rows = pixels[-_SIDE // 8 :].mean(0)
    light, dark = (np.array(colour) for colour in (scenes.STRIPE, scenes.GROUNDS["in a striped field"]))
    signal = np.clip((rows - dark) @ (light - dark) / float((light - dark) @ (light - dark)) * 2 - 1, -1, 1)
    x = (np.arange(_SIDE) + 0.5) / _SIDE
    best = 0.0
    for period in np.linspace(0.1, 0.3, 81):
        for phase in np.linspace(0, 1, 32, endpoint=False):
            wave = np.where(np.abs((x / period + phase) % 1 - 0.5) < 0.25, 1.0, -1.0)
            best = max(best, float((wave * signal).mean()))
    return best


# ---- colours -----------------------------------------------------------------------------------------


def _distance(pixels: NDArray[Any], colour: Colour) -> NDArray[Any]:
    return np.linalg.norm(pixels - np.asarray(colour, np.float32), axis=-1)


def _like(pixels: Image, colour: Colour, others: Iterable[Colour]) -> NDArray[np.bool_]:
    """Pixels of this colour rather than another one."""
    own = _distance(pixels, colour)
    return (own < _NEAR) & (own <= np.min([_distance(pixels, other) for other in others], axis=0))


def _nearest(colour: NDArray[Any], names: Mapping[str, Colour]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(names[name]))))


def _nearest_palette(pixels: NDArray[Any], palettes: Mapping[str, list[Colour]]) -> str:
    errors = {
        name: float(np.mean(np.min([_distance(pixels, colour) for colour in colours], axis=0)))
        for name, colours in palettes.items()
    }
    return min(errors, key=lambda name: errors[name])


def _runs(mask: NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """First and one past the last of each run of true values; gaps up to `gap` do not end one."""
    runs: list[tuple[int, int]] = []
    for at in np.flatnonzero(mask):
        if runs and at - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], int(at) + 1)
        else:
            runs.append((int(at), int(at) + 1))
    return runs


def _resized(image: Image) -> Image:
    """[_SIDE, _SIDE, 3]; averages where the picture is larger."""
    if image.shape[:2] == (_SIDE, _SIDE):
        return np.asarray(image, np.float32)
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(planes, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()
