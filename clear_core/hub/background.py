"""Blocking work in a background thread, so that the caller stays cancellable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

_TICK = 0.1  # seconds between two polls
_AHEAD = 16  # items


def in_background(items: Iterator[T], poll: Callable[[], None]) -> Generator[T, None, None]:
    """`items`, produced in another thread, while this one calls `poll` at least ten times a second.

    What `items` raises is raised here. When `poll` raises, or the caller stops early, the thread is abandoned: it
    ends at the next item it produces, at the latest when its network times out.
    """
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(_AHEAD)
    gone = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not gone.is_set():
            try:
                queue.put((item, error), timeout=_TICK)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    threading.Thread(target=work, daemon=True, name="clear-download").start()
    try:
        while True:
            poll()
            try:
                item, error = queue.get(timeout=_TICK)
            except Empty:
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType]
    finally:
        gone.set()


def wait_for(make: Callable[[], T], poll: Callable[[], None]) -> T:
    """What `make` returns or raises, with polls as in `in_background`."""
    (made,) = in_background((make() for _ in range(1)), poll)
    return made
