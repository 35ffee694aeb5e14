"""Downloads in the background, one of a file at a time, whoever asks for it.

A download ends when the file is there, when it fails, when it is cancelled, or when the last one that asked for it
leaves. What has arrived stays for the next one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from typing import Literal

from .fetch import DownloadError, Progress
from .released import Released

_log = logging.getLogger("clear-attention")
_EVERY = 0.5  # seconds between two reports of progress
_WINDOW = 20  # reports that the speed is taken over

Phase = Literal["running", "done", "failed", "cancelled"]
Fetch = Callable[[Released, Progress], Path]


class _Cancelled(Exception):
    """Ends the thread of a download."""


@dataclass(frozen=True, slots=True)
class DownloadState:
    """How far a download is.

    done, size: bytes; size is 0 until the hub has told it. speed: bytes a second, 0 while unknown.
    text: what it is waiting for or why it failed; "" otherwise.
    number: grows with every state, also from one process to the next: answers and messages may overtake one another.
    """

    phase: Phase = "running"
    done: int = 0
    size: int = 0
    speed: float = 0.0
    text: str = ""
    number: int = field(default=0, compare=False)

    @property
    def seconds_left(self) -> float | None:
        """None while the speed is unknown."""
        return (self.size - self.done) / self.speed if self.speed > 0 else None


class Download:
    """One download in a thread of its own; made by `Downloads`. It is the `Progress` of its own fetch.

    changed: called in that thread whenever the state has changed. number: makes the states' numbers.
    """

    def __init__(
        self,
        released: Released,
        fetch: Fetch,
        changed: Callable[[str, DownloadState], None],
        number: Callable[[], int],
    ) -> None:
        self.holders: set[Hashable] = set()  # guarded by the lock of `Downloads`
        self._released = released
        self._fetch = fetch
        self._changed = changed
        self._number = number
        self._cancel = Event()
        self._news = Condition()
        self._state = DownloadState(number=number())
        self._path: Path | None = None
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._thread = Thread(target=self._run, daemon=True, name=f"clear-download {released.name}")
        self._thread.start()

    @property
    def state(self) -> DownloadState:
        return self._state

    @property
    def path(self) -> Path:
        """The file of a download that is done."""
        assert self._path is not None
        return self._path

    @property
    def cancelling(self) -> bool:
        return self._cancel.is_set()

    def wait(self, seen: DownloadState | None, timeout: float) -> DownloadState:
        """The state, as soon as it is another than `seen`, at the latest after `timeout` seconds."""
        with self._news:
            self._news.wait_for(lambda: self._state is not seen, timeout)
            return self._state

    def cancel(self) -> None:
        """End it and wait for the end, some tenths of a second. Harmless when it has ended."""
        self._cancel.set()
        self._thread.join()

    def poll(self) -> None:
        if self._cancel.is_set():
            raise _Cancelled

    def status(self, text: str) -> None:
        self._seen.clear()  # the pause is not part of the speed
        self._set(replace(self._state, speed=0.0, text=text))

    def update(self, done: int, size: int) -> None:
        now = time.monotonic()
        if self._seen and now < self._seen[-1][0] + _EVERY and done < size:
            return
        self._seen.append((now, done))
        since, before = self._seen[0]
        speed = (done - before) / (now - since) if now > since else 0.0
        self._set(DownloadState("running", done, size, speed))

    def _run(self) -> None:
        try:
            self._path = self._fetch(self._released, self)
            size = self._path.stat().st_size
            self._set(DownloadState("done", size, size))
        except _Cancelled:
            self._set(replace(self._state, phase="cancelled", speed=0.0, text=""))
        except DownloadError as error:
            self._set(replace(self._state, phase="failed", speed=0.0, text=str(error)))
        except Exception as error:
            _log.exception("CLEAR: the download of %s failed", self._released.name)
            text = f"{self._released.name} could not be downloaded: {type(error).__name__}: {error}"
            self._set(replace(self._state, phase="failed", speed=0.0, text=text))

    def _set(self, state: DownloadState) -> None:
        state = replace(state, number=self._number())
        with self._news:
            self._state = state
            self._news.notify_all()
        self._changed(self._released.name, state)


class Downloads:
    """The downloads of one process. fetch: gets one file. changed: as for `Download`."""

    def __init__(self, fetch: Fetch, changed: Callable[[str, DownloadState], None]) -> None:
        self._fetch = fetch
        self._changed = changed
        self._lock = Lock()
        self._number = count(int(time.time() * 1000)).__next__
        self._none = DownloadState("cancelled", number=self._number())
        self._latest: dict[str, Download] = {}  # by name: as many as there are released files

    def start(self, released: Released, holder: Hashable) -> Download:
        """The download of a file: the one that is running, or a new one. holder: who wants it, until `leave`."""
        with self._lock:
            current = self._latest.get(released.name)
            if current is not None and current.cancelling:
                current.cancel()  # waits for its end: never two writers
            if current is None or current.state.phase != "running":
                current = self._latest[released.name] = Download(released, self._fetch, self._changed, self._number)
            current.holders.add(holder)
            return current

    def leave(self, download: Download, holder: Hashable) -> None:
        """`holder` no longer wants it; cancels it if nobody else does."""
        with self._lock:
            download.holders.discard(holder)
            if not download.holders:
                download.cancel()

    def cancel(self, name: str) -> None:
        """End the download of a file for all who want it. Harmless when there is none."""
        with self._lock:
            current = self._latest.get(name)
            if current is not None:
                current.cancel()

    def state(self, name: str) -> DownloadState:
        """Of the latest download of a file; as of one that was cancelled at the start where there was none."""
        current = self._latest.get(name)
        return current.state if current is not None else self._none

    def close(self) -> None:
        """Cancel all."""
        for name in list(self._latest):
            self.cancel(name)
