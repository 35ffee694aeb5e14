"""Procedural scenes with a description in words.

A description names what a picture shows: how many objects, their colour and kind, the ground, the sky and the light.
What it leaves open is drawn at random once per picture and holds for all of it: the height of the horizon, the size of
the objects, the colour of their marks, the stripes of a field. Objects stand far apart, so a model that draws them
alike, on a straight horizon, must relate distant parts of the picture to each other. `scorer` measures both.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""[height, width, 3], 0 to 1, float32."""
Colour = tuple[float, float, float]
"""Red, green and blue, 0 to 255."""

COUNTS: tuple[str, ...] = ("one", "two", "three")
COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (214, 48, 49),
        "blue": (45, 105, 225),
        "yellow": (250, 208, 35),
        "purple": (140, 60, 175),
        "orange": (240, 128, 30),
    }
)
THINGS: tuple[str, ...] = ("house", "tree", "ball", "tower")
MARKS: tuple[Colour, ...] = ((250, 250, 250), (28, 28, 32), (40, 220, 205))
"""Of windows, doors, bands: the same for all objects of a picture, and not in the description."""
GROUNDS: Mapping[str, Colour] = MappingProxyType(
    {
        "on a meadow": (110, 172, 82),
        "in a desert": (226, 198, 150),
        "by a lake": (60, 120, 140),
        "in a striped field": (92, 150, 72),
    }
)
STRIPE: Colour = (172, 202, 98)
"""The other colour of a striped field."""
SKIES: Mapping[str, tuple[Colour, Colour]] = MappingProxyType(
    {
        "blue sky": ((120, 185, 240), (205, 230, 245)),
        "pink sky": ((235, 140, 165), (250, 210, 195)),
        "dark sky": ((18, 20, 48), (52, 54, 98)),
    }
)
"""The colour at the top and at the horizon."""
LIGHTS: tuple[str, ...] = ("no sun", "the sun on the left", "the sun on the right")
SUN: Colour = (255, 246, 205)
TRUNK: Colour = (110, 72, 48)

_PLACES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"one": (0.5,), "two": (0.2, 0.8), "three": (0.17, 0.5, 0.83)}
)
_DEPTH = 0.13  # of the objects' base below the horizon, unless they stand on a shore


@dataclass(frozen=True, slots=True)
class Description:
    """What a prompt says. Each word is one of this module's lists."""

    count: str
    colour: str
    thing: str
    ground: str
    sky: str
    light: str

    @property
    def prompt(self) -> str:
        thing = self.thing if self.count == "one" else f"{self.thing}s"
        light = self.light.replace("sun", "moon") if self.sky == "dark sky" else self.light
        return f"{self.count} {self.colour} {thing} {self.ground}, {self.sky}, {light}"

    @property
    def number(self) -> int:
        return COUNTS.index(self.count) + 1


def descriptions() -> list[Description]:
    """All of them, 2160, in a fixed order."""
    words = (COUNTS, COLOURS, THINGS, GROUNDS, SKIES, LIGHTS)
    return [Description(*chosen) for chosen in itertools.product(*words)]


def split(held_out: int = 100) -> tuple[list[Description], list[Description]]:
    """Descriptions to train with, and others that training never sees. The same on every machine."""
    everything = descriptions()
    order = np.random.Generator(np.random.PCG64(7)).permutation(len(everything))
    return [everything[i] for i in order[held_out:]], [everything[i] for i in order[:held_out]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A description, and all that it leaves open. Lengths in parts of the picture's side, from its top left."""

    description: Description
    horizon: float
    size: float
    """Of the objects: their height."""
    places: tuple[float, ...]
    """The objects' middles, from the left."""
    mark: int
    """Which of MARKS."""
    period: float
    """Of a field's stripes."""
    phase: float
    ridge: tuple[float, float, float]
    """Height, wavelength and phase of the hills behind the horizon."""
    sun: tuple[float, float]

    @classmethod
    def of(cls, description: Description, random: np.random.Generator) -> Scene:
        """One of the pictures that a description fits."""
        lake = description.ground == "by a lake"
        side = {"the sun on the left": 0.2, "the sun on the right": 0.8}.get(description.light, 0.0)
        shift = random.uniform(-0.03, 0.03) if description.number > 1 else random.uniform(-0.25, 0.25)
        return cls(
            description=description,
            horizon=random.uniform(0.5, 0.6) if lake else random.uniform(0.45, 0.65),
            # Three have less room.
            size=random.uniform(0.2, 0.25) if description.number == 3 else random.uniform(0.22, 0.29),
            places=tuple(place + shift for place in _PLACES[description.count]),
            mark=int(random.integers(len(MARKS))),
            period=random.uniform(0.13, 0.25),
            phase=random.uniform(0, 1),
            ridge=(random.uniform(0.02, 0.07), random.uniform(0.5, 1.2), random.uniform(0, 1)),
            sun=(side + random.uniform(-0.05, 0.05), random.uniform(0.09, 0.14)),
        )

    @property
    def base(self) -> float:
        """Where the objects stand."""
        return self.horizon if self.description.ground == "by a lake" else self.horizon + _DEPTH


def draw(scene: Scene, side: int) -> Image:
    """The picture, [side, side, 3]. Edges are anti-aliased, so that every size shows the same scene."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + 0.5
    canvas = _Canvas(x / side, y / side)
    _sky(canvas, scene)
    if scene.description.ground == "by a lake":
        _objects(canvas, scene)
        _lake(canvas, scene)
    else:
        _ground(canvas, scene)
        _objects(canvas, scene)
    return canvas.image


class _Canvas:
    """A picture and its pixels' middles."""

    def __init__(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        self.x, self.y = x, y
        self.image: Image = np.zeros((*x.shape, 3), np.float32)

    def fill(self, distance: NDArray[Any], colour: Colour | Image) -> None:
        """Colour where `distance` (to an edge, negative inside) is below zero; a share of it within half a pixel."""
        cover = np.clip(0.5 - distance * len(self.x), 0, 1)[..., None]
        self.image += cover * (np.asarray(colour, np.float32) / 255 - self.image)

    def box(self, left: float, right: float, top: float, bottom: float) -> NDArray[Any]:
        """The distance to a rectangle's edge."""
        across = np.maximum(left - self.x, self.x - right)
        return np.maximum(across, np.maximum(top - self.y, self.y - bottom))

    def disc(self, x: float, y: float, radius: float) -> NDArray[Any]:
        return np.hypot(self.x - x, self.y - y) - radius

    def triangle(self, x: float, top: float, bottom: float, half: float) -> NDArray[Any]:
        """One that stands on its base, `half` of which is given."""
        height = bottom - top
        slope = (np.abs(self.x - x) * height - (self.y - top) * half) / np.hypot(height, half)
        return np.maximum(slope, self.y - bottom)


def _sky(canvas: _Canvas, scene: Scene) -> None:
    top, low = (np.asarray(colour, np.float32) for colour in SKIES[scene.description.sky])
    share = np.clip(canvas.y / scene.horizon, 0, 1)[..., None]
    canvas.image[:] = (top + (low - top) * share) / 255
    if scene.description.light != LIGHTS[0]:
        canvas.fill(canvas.disc(*scene.sun, 0.065), SUN)
    height, length, phase = scene.ridge
    ridge = scene.horizon - height * (1 + np.sin(2 * np.pi * (canvas.x / length + phase))) / 2
    canvas.fill(ridge - canvas.y, hills(scene.description))


def hills(description: Description) -> Colour:
    """The colour of what lies behind the horizon: between the sky's and the ground's."""
    sky, ground = SKIES[description.sky][1], GROUNDS[description.ground]
    return (0.45 * sky[0] + 0.55 * ground[0], 0.45 * sky[1] + 0.55 * ground[1], 0.45 * sky[2] + 0.55 * ground[2])


def in_water(colours: Image) -> Image:
    """Colours, 0 to 255, as a lake reflects them."""
    return 0.6 * colours + 0.4 * np.asarray(GROUNDS["by a lake"], np.float32)


def _ground(canvas: _Canvas, scene: Scene) -> None:
    ground = scene.horizon - canvas.y
    canvas.fill(ground, GROUNDS[scene.description.ground])
    if scene.description.ground == "in a striped field":
        # From a stripe's middle: a quarter of a period to its edge.
        along = np.abs((canvas.x / scene.period + scene.phase) % 1 - 0.5) * scene.period - scene.period / 4
        canvas.fill(np.maximum(along, ground), STRIPE)


def _lake(canvas: _Canvas, scene: Scene) -> None:
    """What lies above the horizon, upside down and tinted."""
    side = len(canvas.y)
    rows = 2 * scene.horizon * side - np.arange(side) - 1
    low = np.clip(np.floor(rows).astype(int), 0, side - 1)
    high = np.clip(low + 1, 0, side - 1)
    part = np.clip(rows - low, 0, 1).astype(np.float32)[:, None, None]
    mirrored = canvas.image[low] * (1 - part) + canvas.image[high] * part
    canvas.fill(scene.horizon - canvas.y, in_water(mirrored * 255))


def _objects(canvas: _Canvas, scene: Scene) -> None:
    things = {"house": _house, "tree": _tree, "ball": _ball, "tower": _tower}
    colour = COLOURS[scene.description.colour]
    for place in scene.places:
        things[scene.description.thing](canvas, place, scene.base, scene.size, colour, MARKS[scene.mark])


def _house(canvas: _Canvas, x: float, base: float, size: float, colour: Colour, mark: Colour) -> None:
    """Walls under a roof, with a window."""
    half = 0.42 * size
    canvas.fill(canvas.box(x - half, x + half, base - 0.58 * size, base), colour)
    canvas.fill(canvas.triangle(x, base - size, base - 0.55 * size, 0.58 * size), colour)
    canvas.fill(canvas.box(x - 0.16 * size, x + 0.16 * size, base - 0.44 * size, base - 0.12 * size), mark)


def _tree(canvas: _Canvas, x: float, base: float, size: float, colour: Colour, mark: Colour) -> None:
    """A cone on a trunk, with a bauble on top."""
    canvas.fill(canvas.box(x - 0.08 * size, x + 0.08 * size, base - 0.3 * size, base), TRUNK)
    canvas.fill(canvas.triangle(x, base - size, base - 0.2 * size, 0.42 * size), colour)
    canvas.fill(canvas.disc(x, base - 0.92 * size, 0.12 * size), mark)


def _ball(canvas: _Canvas, x: float, base: float, size: float, colour: Colour, mark: Colour) -> None:
    """With a band around it."""
    radius = 0.42 * size
    disc = canvas.disc(x, base - radius, radius)
    canvas.fill(disc, colour)
    canvas.fill(np.maximum(disc, np.abs(canvas.y - base + radius) - 0.12 * size), mark)


def _tower(canvas: _Canvas, x: float, base: float, size: float, colour: Colour, mark: Colour) -> None:
    """Narrow, with battlements and a door."""
    half, top = 0.21 * size, base - 1.05 * size
    canvas.fill(canvas.box(x - half, x + half, top, base), colour)
    canvas.fill(canvas.box(x - 1.35 * half, x + 1.35 * half, top - 0.12 * size, top + 0.08 * size), colour)
    canvas.fill(canvas.box(x - 0.11 * size, x + 0.11 * size, base - 0.36 * size, base), mark)
