"""A hub on the loopback, a small but complete set of weights on it, and a recorder of progress."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devtools.hub import LoopbackHub, small_files


@pytest.fixture(scope="session")
def weights(host: Any) -> dict[str, bytes]:
    return small_files()


@pytest.fixture
def hub(weights: dict[str, bytes]) -> Iterator[LoopbackHub]:
    with LoopbackHub(weights) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clear"
    path.mkdir()
    return path


class Cancelled(BaseException):
    """As the host's own interrupt may be."""


class RecordedProgress:
    """Keeps what it is told; cancels when asked to."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self.cancel = False
        self._news = threading.Condition()

    def poll(self) -> None:
        if self.cancel:
            raise Cancelled

    def update(self, done: int, size: int) -> None:
        with self._news:
            self.moves.append((done, size))
            self._news.notify_all()

    def arrived(self, done: int) -> bool:
        """Waits until so many bytes have."""
        with self._news:
            return self._news.wait_for(lambda: self.moves and self.moves[-1][0] >= done, 30)

    def status(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture
def cancelled() -> type[BaseException]:
    return Cancelled
