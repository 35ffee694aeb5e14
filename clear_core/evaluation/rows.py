"""Rows of numbers on disk, by the identity of what made them and a key: a run that was stopped goes on from them.

Each identity has a folder of safetensors files of some hundred rows, which are never changed. Processes may share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..whole_file import written_whole

_ROWS, _KEYS, _IDENTITY = "rows", "keys", "identity"
_TOGETHER: Final = 128  # rows of a file, the most that a crash loses
_NUMBERS: Final = 2**18  # a file is written earlier where its rows are long


class Rows:
    """folder: where they lie; made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, dict[str, tuple[Path, int]]] = {}  # by identity and key

    def keys(self, identity: str) -> frozenset[str]:
        """Those that have a row."""
        return frozenset(self._index(identity))

    def read(self, identity: str, keys: Sequence[str]) -> Tensor:
        """float32 [keys, width], in the order of `keys`. Raises KeyError for one without a row."""
        index = self._index(identity)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for at, key in enumerate(keys):
            file, row = index[key]
            by_file.setdefault(file, []).append((at, row))
        out: Tensor | None = None
        for file, places in by_file.items():
            with safe_open(str(file), framework="pt") as opened:
                rows = opened.get_tensor(_ROWS)
            if out is None:
                out = torch.empty(len(keys), rows.shape[1])
            out[[at for at, _ in places]] = rows[[row for _, row in places]]
        return out if out is not None else torch.empty(0, 0)

    def writer(self, identity: str, width: int) -> Writer:
        """Takes rows of `width` numbers; a context manager that writes what is left at its end."""
        return Writer(self, self._of(identity), identity, max(1, min(_TOGETHER, _NUMBERS // width)))

    def _index(self, identity: str) -> dict[str, tuple[Path, int]]:
        if identity not in self._places:
            places: dict[str, tuple[Path, int]] = {}
            for file in sorted(self._of(identity).glob("*.safetensors")):
                try:
                    with safe_open(str(file), framework="pt") as opened:
                        keys = json.loads((opened.metadata() or {})[_KEYS])
                except (SafetensorError, OSError, KeyError, ValueError):  # damaged: its rows are computed again
                    continue
                places |= {key: (file, row) for row, key in enumerate(keys)}
            self._places[identity] = places
        return self._places[identity]

    def _of(self, identity: str) -> Path:
        return self._folder / hashlib.sha256(identity.encode()).hexdigest()[:16]

    def _add(self, identity: str, file: Path, keys: Sequence[str]) -> None:
        self._index(identity).update({key: (file, row) for row, key in enumerate(keys)})


class Writer:
    """Collects rows, and writes a file whenever there are `together`."""

    def __init__(self, rows: Rows, folder: Path, identity: str, together: int) -> None:
        self._rows, self._folder, self._identity, self._together = rows, folder, identity, together
        self._keys: list[str] = []
        self._parts: list[Tensor] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def add(self, keys: Sequence[str], rows: Tensor) -> None:
        """rows: float32 [keys, width]."""
        self._keys += keys
        self._parts.append(rows)
        if len(self._keys) >= self._together:
            self._write()

    def _write(self) -> None:
        if not self._keys:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{uuid4().hex}.safetensors"
        about = {_KEYS: json.dumps(self._keys), _IDENTITY: self._identity}
        with written_whole(file) as part:
            save_file({_ROWS: torch.cat(self._parts)}, str(part), about)
        self._rows._add(self._identity, file, self._keys)
        self._keys, self._parts = [], []
