"""Downloads of released files: for a node that runs, with its progress and ComfyUI's cancel, and for the page."""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import comfy.model_management
import comfy.utils

from ...clear_core.hub.downloads import Downloads, DownloadState
from ...clear_core.hub.fetch import DownloadError, Progress, fetch
from ...clear_core.hub.released import DATE, RELEASED, Released, find, part_files, size_text
from .files import absent_release, download_folder, weights_path
from .node_text import node_text_sender
from .server import running_server

EVENT = "clear_attention.download"
"""The message to every open page whenever a download's state has changed: a `download_payload`."""

_TICK = 0.1  # seconds between two looks for ComfyUI's cancel
_PAGE = "page"  # who wants a download that was started there


def download(released: Released, *, node_id: str | None) -> Path:
    """The file in models/clear, downloaded now, or by the download that is running already.

    Raises DownloadError, and the host's interrupt: a download that only this run wants ends with it.
    """
    show = node_text_sender(node_id)
    bar = comfy.utils.ProgressBar(1, node_id=node_id)
    run = object()
    shared = _DOWNLOADS.start(released, run)
    seen: DownloadState | None = None
    try:
        while seen is None or seen.phase == "running":
            comfy.model_management.throw_exception_if_processing_interrupted()
            state = shared.wait(seen, _TICK)
            if state is seen:
                continue
            seen = state
            if state.done:
                bar.update_absolute(state.done, state.size)
            if text := _progress_text(state):
                show(f"{released.name}: {text}")
    finally:
        _DOWNLOADS.leave(shared, run)
    if seen.phase == "failed":
        raise DownloadError(seen.text)
    if seen.phase == "cancelled":
        raise DownloadError(
            f"The download of {released.name} was cancelled on the panel of Load CLEAR Weights. Run again, or press "
            "Resume there: it continues with what has arrived."
        )
    show(f"{released.name}: downloaded into {shared.path.parent}, size and SHA-256 verified")
    return shared.path


def fetched_weights(name: str, *, node_id: str | None) -> Path:
    """The file of that name in models/clear; a released one that is missing is downloaded. Raises as `download`.

    Raises ValueError where there is none.
    """
    released = absent_release(name)
    return weights_path(name) if released is None else download(released, node_id=node_id)


def start_download(name: str) -> dict[str, Any]:
    """Start or join the download of a released file, unless the file is here; its `download_payload`."""
    released = absent_release(name)
    if released is not None:
        _DOWNLOADS.start(released, _PAGE)
    return download_payload(name)


def cancel_download(name: str) -> dict[str, Any]:
    """End the download of a released file, whoever started it; its `download_payload`."""
    _DOWNLOADS.cancel(name)
    return download_payload(name)


def download_payloads() -> list[dict[str, Any]]:
    """`download_payload` of each released file."""
    return [download_payload(released.name) for released in RELEASED]


def download_payload(name: str) -> dict[str, Any]:
    """What the page shows about a released file, ready for JSON.

    phase: here, missing, running or failed. verified: whether the file that is here was downloaded by this pack.
    done, size: as text, of what has arrived. share: of 0 to 1; None while the hub has not told the size. speed, left:
    as text or None. text: what the download waits for, or why it failed. number: the latest has the highest.
    """
    released = find(name)
    assert released is not None
    state = _DOWNLOADS.state(name)
    running = state.phase == "running"
    here = not running and absent_release(name) is None
    kept = state.done if running else _kept(name)
    left = state.seconds_left if running else None
    return {
        "name": name,
        "phase": "here" if here else state.phase if state.phase in ("running", "failed") else "missing",
        "verified": here and weights_path(name).stat().st_mtime == DATE,
        "done": size_text(kept) if kept else None,
        "size": size_text(state.size or released.size),
        "share": state.done / state.size if running and state.size else None,
        "speed": f"{size_text(state.speed)}/s" if running and state.speed > 0 else None,
        "left": _duration(left) if left is not None else None,
        "text": "" if here else state.text,
        "number": state.number,
    }


def _kept(name: str) -> int:
    """Bytes of an incomplete download from which the next one continues; 0 for none."""
    return max((path.stat().st_size for path in part_files(download_folder(), name)), default=0)


def _progress_text(state: DownloadState) -> str:
    if state.text or not state.done:
        return state.text if state.phase == "running" else ""
    text = f"{size_text(state.done)} of {size_text(state.size)}"
    if state.seconds_left is not None:
        text += f", {size_text(state.speed)}/s, {_duration(state.seconds_left)} left"
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _fetch(released: Released, progress: Progress) -> Path:
    return fetch(released, download_folder(), progress)


def _tell_pages(name: str, state: DownloadState) -> None:
    server = running_server()
    if server is not None:
        with suppress(RuntimeError):  # its loop has ended: ComfyUI is closing
            server.send_sync(EVENT, download_payload(name))


_DOWNLOADS: Final = Downloads(_fetch, _tell_pages)
# Ctrl-C: what has arrived stays, and the lock goes.
atexit.register(_DOWNLOADS.close)
