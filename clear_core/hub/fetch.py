"""Fetch a released file: resumed where it stopped, checked, and in its place whole or not at all.

While it is incomplete it lies beside its place as NAME.DIGEST.part, and NAME.lock keeps a second ComfyUI from fetching
it too. Nothing that was there before is overwritten or removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..weights import WeightsError, parse_weights, read_header
from .background import in_background, wait_for
from .client import Failure, Promise, Unsteady, ask, pieces
from .released import DATE, Released, address, size_text

_WAITS = (1.0, 2.0, 4.0, 8.0)
_PATIENCE = 20.0  # seconds with a hub that does not answer
_LONGEST_WAIT = 60.0
_TICK = 0.1


class DownloadError(RuntimeError):
    """The text says what happened, what is kept, and how to do it by hand."""


class Watch(Protocol):
    """Who looks on."""

    def poll(self) -> None:
        """Called some times a second; may raise to cancel. What has arrived is kept."""

    def moved(self, done: int, size: int) -> None:
        """So many bytes of so many are here; may raise as well."""

    def say(self, text: str) -> None:
        """What is being waited for."""


def fetch(
    released: Released, folder: Path, watch: Watch, *, endpoint: str | None = None, waits: Sequence[float] = _WAITS
) -> Path:
    """The file's path in `folder`, once it is there: fetched, or found where another process put it meanwhile.

    endpoint: address of a hub, None for the client's own. waits: seconds before each further try while nothing comes.
    Raises DownloadError, and whatever `watch` raises.
    """
    url = address(released.name, endpoint)
    final = folder / released.name
    part = None
    promise = None
    try:
        promise = _ask(url, watch, waits)
        if released.sha256 not in (None, promise.sha256):
            raise Failure(f"the hub has another file by this name now, with the SHA-256 {promise.sha256}")
        part = folder / f"{released.name}.{promise.sha256[:12]}.part"
        with _alone(folder / f"{released.name}.lock", released.name, watch):
            if not final.exists():
                _check_room(part, promise)
                _receive(url, part, promise, watch, waits)
                _check(part, released.name)
                _put_in_place(part, final)
        return final
    except (Failure, OSError) as error:
        what = _words_for(error, folder) if isinstance(error, OSError) else str(error)
        raise DownloadError(
            f"{released.name} could not be downloaded: {what.rstrip('.')}. {_kept(part, promise)} "
            f"To do it by hand, fetch {url} and put it into {folder}."
        ) from error


def _ask(url: str, watch: Watch, waits: Sequence[float]) -> Promise:
    tries, until = iter(waits), time.monotonic() + _PATIENCE
    while True:
        try:
            return wait_for(lambda: ask(url), watch.poll)
        except Unsteady as fault:
            # Some versions of the client try again for half a minute by themselves.
            _wait(fault, next(tries, None) if time.monotonic() < until else None, watch)


def _receive(url: str, part: Path, promise: Promise, watch: Watch, waits: Sequence[float]) -> None:
    """Complete the part, and hold it against size and digest."""
    digest, done = _what_is_here(part, promise, watch)
    tries = iter(waits)
    with _open_part(part) as file:
        while done < promise.size:
            before = done
            try:
                with closing(in_background(pieces(url, done, promise.size), watch.poll)) as arriving:
                    for piece in arriving:
                        file.write(piece)
                        digest.update(piece)
                        done += len(piece)
                        watch.moved(done, promise.size)
            except Unsteady as fault:
                if done > before:
                    tries = iter(waits)
                _wait(fault, next(tries, None), watch)
        file.flush()
        # Before it gets its name, so that no power cut leaves a file of that name with holes.
        wait_for(lambda: os.fsync(file.fileno()), watch.poll)
    if digest.hexdigest() != promise.sha256:
        part.unlink()
        raise Failure(
            f"what arrived has the SHA-256 {digest.hexdigest()} instead of {promise.sha256}: it was damaged on the "
            "way, and was thrown away"
        )


@contextmanager
def _open_part(part: Path) -> Iterator[BinaryIO]:
    """Open to append; an empty part is no part."""
    try:
        with part.open("ab") as file:
            yield file
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def _what_is_here(part: Path, promise: Promise, watch: Watch) -> tuple[Any, int]:
    """The digest so far, and the bytes it is of."""
    digest, done = hashlib.sha256(), 0
    if part.exists() and part.stat().st_size > promise.size:
        part.unlink()
    if part.exists():
        with part.open("rb") as file:
            left = part.stat().st_size
            while left and (block := file.read(min(left, 2**20))):
                watch.poll()
                digest.update(block)
                done += len(block)
                left -= len(block)
    return digest, done


def _wait(fault: Unsteady, pause: float | None, watch: Watch) -> None:
    """Before the next try; raises `fault` when there is none, or the hub asks for more patience than a person has."""
    if pause is None or fault.after > _LONGEST_WAIT:
        raise fault
    pause = max(pause, fault.after)
    watch.say(f"{fault}; trying again in {pause:.0f} s")
    until = time.monotonic() + pause
    while (left := until - time.monotonic()) > 0:
        watch.poll()
        time.sleep(min(left, _TICK))


@contextmanager
def _alone(path: Path, name: str, watch: Watch) -> Iterator[None]:
    """One at a time, over all processes."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    waiting = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not waiting:
                watch.say(
                    f"another ComfyUI is downloading {name}; waiting for it. Nothing else runs? Then delete {path}"
                )
            waiting = True
            watch.poll()
            time.sleep(_TICK)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it when it is released
            path.unlink()
        lock.release()


def _check_room(part: Path, promise: Promise) -> None:
    need = promise.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if free < need:
        raise Failure(
            f"the disk of {part.parent} has {size_text(free)} free, and {size_text(need)} are needed; make room"
        )


def _check(part: Path, name: str) -> None:
    """By its header: the loader reads the rest."""
    try:
        parse_weights(*read_header(part), name)
    except WeightsError as error:
        part.unlink()  # going on from it would give the same
        raise Failure(f"what arrived is as the hub has it, but cannot be used. {error}") from error


def _put_in_place(part: Path, final: Path) -> None:
    """Give the part its name, unless a file has it by now: that one stays."""
    os.utime(part, (DATE, DATE))
    try:
        os.link(part, final)  # unlike a rename it never replaces a file
        part.unlink()
    except FileExistsError:
        part.unlink()
    except OSError:  # no hard links on this disk (exFAT, some network shares)
        if final.exists():
            part.unlink()
        else:
            part.rename(final)


def _kept(part: Path | None, promise: Promise | None) -> str:
    here = part.stat().st_size if part is not None and part.is_file() else 0
    if not here or part is None or promise is None:
        return "Nothing of it is kept."
    return f"{size_text(here)} of {size_text(promise.size)} are kept, and the next run goes on from there."


def _words_for(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full; make room"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{folder} cannot be written to ({error.strerror}); allow it, or name another folder for clear in "
            "extra_model_paths.yaml"
        )
    return str(error)
