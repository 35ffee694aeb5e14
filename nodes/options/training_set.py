"""What CLEAR Training Set is asked for, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .limits import one_of, within

IMAGES, GENERATE = "images in a folder", "generate from prompts"
SOURCES: Final = (IMAGES, GENERATE)
NEEDS: Final = MappingProxyType({IMAGES: "vae", GENERATE: "model"})
"""By source: the input that has to be connected for it."""

SMALLEST, LARGEST, STEP = 64, 4096, 16
MOST_STEPS: Final = 1000
LARGEST_SEED: Final = 2**64 - 1
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class SetOptions:
    """width, height: of every image, in pixels. Raises ValueError for values that no training set can have."""

    name: str
    source: str
    width: int
    height: int
    steps: int
    seed: int

    def __post_init__(self) -> None:
        check_name(self.name)
        one_of("source", self.source, SOURCES)
        check_side("width", self.width)
        check_side("height", self.height)
        within("steps", self.steps, 1, MOST_STEPS)
        within("seed", self.seed, 0, LARGEST_SEED)


def check_name(name: str) -> None:
    """Raises ValueError unless it is the name of one folder, on every system. A workflow may come from anywhere."""
    if not re.fullmatch(r"\w(?:[\w .-]*[\w-])?", name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"name is {name!r:.60}; allowed are letters, digits, spaces and . _ - within, up to {_LONGEST_NAME} in all"
        )


def check_side(name: str, value: int) -> None:
    """Raises ValueError unless it is a side of an image that FLUX has tokens for."""
    within(name, value, SMALLEST, LARGEST)
    if value % STEP:
        raise ValueError(
            f"{name} is {value}; allowed are multiples of {STEP}. The nearest is {round(value / STEP) * STEP}"
        )


def check_connected(source: str, connected: bool) -> None:
    """connected: whether what the source needs is."""
    if not connected:
        need = NEEDS[source]
        raise ValueError(f"{need} is not connected; the source {source!r} needs it. Connect a {need.upper()}.")


def prompt_lines(prompts: str) -> tuple[str, ...]:
    """One prompt a line, without empty lines. Raises ValueError where there is none."""
    lines = tuple(encodable(line) for line in map(str.strip, prompts.splitlines()) if line)
    if not lines:
        raise ValueError(f"prompts has no line with text; the source {GENERATE!r} makes an image of each. Write some.")
    return lines


def encodable(text: str) -> str:
    """The text with a question mark for what UTF-8 has no bytes for: halves of characters, from JSON or file names."""
    return text.encode("utf-8", "replace").decode("utf-8")
