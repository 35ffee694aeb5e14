"""Download a released file for a node, with progress on the node and in the queue, and ComfyUI's cancel."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import comfy.model_management
import comfy.utils

from ...clear_core.hub.fetch import fetch
from ...clear_core.hub.released import Released, size_text
from .files import download_folder
from .node_text import node_text_sender

_EVERY = 0.5  # seconds between two texts
_WINDOW = 20  # texts that the speed is taken over


def download(released: Released, *, node_id: str | None) -> Path:
    """Download the file into models/clear; its path. Raises DownloadError, and the host's interrupt."""
    report = _NodeProgress(released.name, node_id)
    path = fetch(released, download_folder(), report)
    report.status(f"downloaded into {path.parent}, size and SHA-256 verified")
    return path


class _NodeProgress:
    """Shows a download on its node and polls for cancel."""

    def __init__(self, name: str, node_id: str | None) -> None:
        self._name = name
        self._show = node_text_sender(node_id)
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def poll(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def status(self, text: str) -> None:
        self._show(f"{self._name}: {text}")

    def update(self, done: int, size: int) -> None:
        now = time.monotonic()
        if self._seen and now < self._seen[-1][0] + _EVERY and done < size:
            return
        self._seen.append((now, done))
        self._bar.update_absolute(done, size)
        text = f"{size_text(done)} of {size_text(size)}"
        (since, before), passed = self._seen[0], now - self._seen[0][0]
        if passed > 0 and done > before:
            speed = (done - before) / (now - since)
            text += f", {size_text(speed)}/s, {_duration((size - done) / speed)} left"
        self.status(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
