"""Cards whose steps were measured: the files of `python dev.py card`, and the one nearest to a card of this machine.

A file is the `card.json` that the command writes, named after the card. Of it are read: `schema`; `device`, `chip`,
`multiprocessors`, `torch` and `triton` of `run`; the rows of `parts.steps`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

FOLDER: Final = Path(__file__).parents[2] / "benchmarks" / "results"
SCHEMA: Final = 1
"""Of `card.json`. It is raised when what is read here changes its meaning."""

_PATTERN = "card-*.json"
_MOST = 200  # files; each card of the last ten years would have one
_LARGEST = 4 * 2**20  # bytes of a file; a run of ten minutes writes some 100 kB
_LARGEST_SIDE, _LARGEST_RADIUS = 2**16, 2**10  # pixels, image tokens: what can be counted in a moment

_log = logging.getLogger("clear-attention")


class NotACard(ValueError):
    """A file that is not what `python dev.py card` writes; the message says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What PyTorch says of a GPU. chip: the architecture, such as sm_90 or gfx1100."""

    device: str
    chip: str
    multiprocessors: int

    @classmethod
    def of(cls, device: torch.device) -> Identity:
        """Of a CUDA device."""
        import torch  # here: who only reads files has no use for it

        found = torch.cuda.get_device_properties(device)
        amd = torch.version.hip is not None
        chip = found.gcnArchName.partition(":")[0] if amd else f"sm_{found.major}{found.minor}"
        return cls(torch.cuda.get_device_name(device), chip, found.multi_processor_count)


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step of a square image through the window. blocks: of the model, whose other sizes are FLUX.1's.

    pixels: a side. weights: bfloat16, or fp8 cast in use. bands: 0 for none.
    """

    pixels: int
    blocks: int
    weights: str
    radius: int
    bands: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredCard:
    """versions: of PyTorch and Triton, as text."""

    identity: Identity
    versions: str
    steps: tuple[MeasuredStep, ...]


def file_name(device: str) -> str:
    """Of a card's file in FOLDER. device: the card's name, as PyTorch has it."""
    return _PATTERN.replace("*", re.sub("[^a-z0-9]+", "-", device.lower()).strip("-"))


def measured_cards(folder: Path = FOLDER) -> Iterator[MeasuredCard]:
    """The cards of a folder, in the order of their files' names. Files that are something else are logged."""
    for path in islice(sorted(folder.glob(_PATTERN)), _MOST):
        try:
            yield read_card(path)
        except NotACard as problem:
            _log.warning("CLEAR: %s", problem)


def nearest(here: Identity, cards: Iterable[MeasuredCard]) -> MeasuredCard | None:
    """The card of the same name; else, of the same chip, the one with the nearest number of multiprocessors.

    None where there is neither: nothing that PyTorch reports says how much faster another chip is.
    """
    alike = [card for card in cards if card.identity.chip == here.chip]

    def distance(card: MeasuredCard) -> tuple[bool, float]:
        there = card.identity
        return there.device != here.device, abs(math.log(there.multiprocessors / here.multiprocessors))

    return min(alike, key=distance, default=None)


def read_card(path: Path) -> MeasuredCard:
    """Read one file. Raises NotACard."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        content = json.loads(path.read_text("utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}; {SCHEMA} is read")
        run = content["run"]
        if run["rehearsal"]:
            raise ValueError("it is of a rehearsal")
        identity = Identity(str(run["device"]), str(run["chip"]), int(_number(run, "multiprocessors", 1, math.inf)))
        rows = content["parts"]["steps"]["rows"]
        steps = tuple(_step(row) for row in rows if row.get("radius") and "s" in row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        what = f"it has no {problem}" if isinstance(problem, KeyError) else problem
        raise NotACard(f"{path.name} is not of a card that python dev.py card measured: {what}") from problem
    triton = f", Triton {run['triton']}" if run.get("triton") else ""
    return MeasuredCard(identity, f"PyTorch {run.get('torch')}{triton}", steps)


def _step(row: Mapping[str, Any]) -> MeasuredStep:
    return MeasuredStep(
        pixels=int(_number(row, "pixels", 1, _LARGEST_SIDE)),
        blocks=int(_number(row, "blocks", 1, math.inf)),
        weights=str(row["weights"]),
        radius=int(_number(row, "radius", 1, _LARGEST_RADIUS)),
        bands=int(_number(row, "bands", 0, _LARGEST_SIDE)),
        seconds=_number(row, "s", 1e-9, math.inf),
    )


def _number(row: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
        raise ValueError(f"its {name} is {value!r:.40}")
    return value
