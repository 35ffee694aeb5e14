"""A measure gives each image, pair of images or prompt a row of numbers; `fill` computes the rows that are not kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ..file_stamp import FileStamp
from .rows import Rows

_PIXELS: Final = 2**22
"""Of the images that are in memory at a time, unless one alone has more."""
_BATCH: Final = 32


class UnreadableError(ValueError):
    """An item that cannot be measured, such as a damaged image. The text is a clause."""


class NotAvailableError(RuntimeError):
    """A measure that cannot be used here: a file or a package is missing, or a file is not the expected one."""


@dataclass(frozen=True, slots=True)
class Measure:
    """identity: of all that the rows depend on besides the item, such as the SHA-256 of the weights.

    width: numbers in a row. rows: of a list of items, a float32 [items, width].
    features: of Inception, how many numbers at the start of a row are features; the others are logits.
    """

    identity: str
    width: int
    rows: Callable[[Sequence[Any]], Tensor]
    features: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """key: of the contents, as `key_of` makes it.

    read: gives what `Measure.rows` takes: an image, uint8 [height, width, 3], a tuple of two, or a text. Raises
    UnreadableError.
    """

    key: str
    read: Callable[[], Any]


class Watch(Protocol):
    """What a long computation reports to."""

    def poll(self) -> None:
        """Called for each item; raise to stop. What is done is kept."""

    def step(self, what: str, done: int, of: int) -> None:
        """`done` items of `of` are measured."""


def key_of(*parts: FileStamp | str) -> str:
    """Of the files' paths, sizes and times of change, or of a text."""
    content = [part if isinstance(part, str) else [str(part.path), part.size, part.modified] for part in parts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def fill(measure: Measure, items: Sequence[Item], kept: Rows, watch: Watch, what: str) -> None:
    """Compute and keep the rows that are missing; items that cannot be read get none.

    In memory at a time: a batch of items and its rows. Raises what the measure and `watch` raise; what has been
    computed by then is kept.
    """
    done = kept.keys(measure.identity)
    missing = {item.key: item for item in items if item.key not in done}
    count = len(items) - len(missing)
    batch: list[tuple[str, Any]] = []
    pixels = 0
    new = kept.writer(measure.identity, measure.width)

    def flush() -> None:
        nonlocal count, pixels
        if batch:
            new.add([key for key, _ in batch], _checked(measure, [read for _, read in batch]))
        count, pixels = count + len(batch), 0
        batch.clear()
        watch.step(what, count, len(items))

    with new:
        watch.step(what, count, len(items))
        for item in missing.values():
            watch.poll()
            try:
                read = item.read()
            except UnreadableError:
                count += 1
                continue
            size = _pixels(read)
            if batch and pixels + size > _PIXELS:
                flush()
            batch.append((item.key, read))
            pixels += size
            del read  # a batch that is done leaves memory before the next image is read
            if len(batch) == _BATCH or pixels >= _PIXELS:
                flush()
        flush()


def _checked(measure: Measure, items: Sequence[Any]) -> Tensor:
    with torch.inference_mode():
        rows = measure.rows(items).to("cpu", torch.float32)
    if rows.shape != (len(items), measure.width):
        raise ValueError(f"the measure gave {tuple(rows.shape)} for {len(items)} items of width {measure.width}")
    return rows.clone()


def _pixels(read: Any) -> int:
    parts = read if isinstance(read, tuple) else (read,)
    return sum(part.shape[0] * part.shape[1] for part in parts if isinstance(part, Tensor))
