"""The file of what `Measure now` measured: timings by device, PyTorch, shape of the model, dtype and backend.

JSON: {"schema": 1, "entries": [{"key": {...}, "timings": {...}}]}, the newest entry last.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ..whole_file import written_whole
from .cost import Model
from .estimate import Rate, Timings, dtype_name

NAME: Final = "clear_attention_times.json"
"""Of the file, in ComfyUI's user folder."""

_SCHEMA: Final = 1
"""It is raised when what is written changes its meaning; entries of another one are dropped."""
_MOST = 64  # entries: the oldest make room
_LARGEST = 2**20  # bytes of a file; 64 entries take some 50 kB

_log = logging.getLogger("clear-attention")


@dataclass(frozen=True, slots=True)
class Key:
    """What timings are of; they are used for nothing else. device: its name. torch: the version. dtype: of activations.

    backend: as asked for, a name or auto.
    """

    device: str
    torch: str
    channels: int
    heads: int
    dtype: str
    backend: str

    @classmethod
    def of(cls, device: str, model: Model, backend: str) -> Key:
        """For the PyTorch that is running. device: its name."""
        return cls(device, torch.__version__, model.channels, model.heads, dtype_name(model.dtype), backend)


def read(path: Path, key: Key) -> Timings | None:
    """The timings of a key; None where there are none. A file that cannot be read is logged."""
    wanted = asdict(key)
    for entry in reversed(_entries(path)):
        if entry.get("key") == wanted:
            try:
                return _timings(entry["timings"])
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                _log.warning("CLEAR: an entry of %s is left out: %s", path.name, problem)
    return None


def write(path: Path, key: Key, timings: Timings) -> None:
    """Keep timings, in place of earlier ones of the same key. Raises OSError where the file cannot be written."""
    added = {"key": asdict(key), "timings": asdict(timings)}
    kept = [entry for entry in _entries(path) if entry.get("key") != added["key"]]
    text = json.dumps({"schema": _SCHEMA, "entries": [*kept, added][-_MOST:]}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:  # a reader sees the old file or the new one
        part.write_text(text, encoding="utf-8")


def _entries(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        content = json.loads(path.read_text("utf-8"))
        if content["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}; {_SCHEMA} is read")
        return [entry for entry in content["entries"] if isinstance(entry, dict)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        _log.warning("CLEAR: %s cannot be read: %s", path.name, problem)
        return []


def _timings(found: Mapping[str, Any]) -> Timings:
    transfer = found["transfer"]
    return Timings(
        double=_rate(found["double"]),
        single=_rate(found["single"]),
        dense=_rate(found["dense"]),
        local={str(name): _rate(rate) for name, rate in found["local"].items()},
        cast={str(name): _seconds(value) for name, value in found["cast"].items()},
        transfer=None if transfer is None else _seconds(transfer) or None,
    )


def _rate(found: Mapping[str, Any]) -> Rate:
    return Rate(*(_seconds(found[name]) for name in ("call", "token", "pair")))


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r:.40} is no number of seconds")
    return float(value)
