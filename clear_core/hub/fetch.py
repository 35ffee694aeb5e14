"""Download a file: resumable, verified, and atomic. `fetch` is for a released one, `fetch_known` for any other.

An incomplete download lies beside its target as NAME.DIGEST.part, and NAME.lock keeps a second ComfyUI from fetching
the same file. Existing files are never overwritten or removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..weights import WeightsError, parse_weights, read_header
from .background import in_background, wait_for
from .client import Failure, RemoteFile, TransientError, file_info, stream
from .released import DATE, Released, address, part_file, size_text

_WAITS = (1.0, 2.0, 4.0, 8.0)
_PATIENCE = 20.0  # seconds with a hub that does not answer
_LONGEST_WAIT = 60.0
_TICK = 0.1


class DownloadError(RuntimeError):
    """The text says what happened, what is kept, and how to download by hand."""


class Progress(Protocol):
    """What a download reports to, and how it is cancelled."""

    def poll(self) -> None:
        """Called several times a second; raise to cancel. What has arrived is kept."""

    def update(self, done: int, size: int) -> None:
        """`done` of `size` bytes have arrived; may raise as well."""

    def status(self, text: str) -> None:
        """What the download is waiting for."""


def fetch(
    released: Released,
    folder: Path,
    progress: Progress,
    *,
    endpoint: str | None = None,
    waits: Sequence[float] = _WAITS,
) -> Path:
    """Download a file into `folder`, unless another process has put it there meanwhile; its path.

    endpoint: address of a hub, None for the client's own. waits: seconds before each retry while nothing arrives.
    Raises DownloadError, and whatever `progress` raises.
    """
    url = address(released.name, endpoint)

    def find() -> RemoteFile:
        remote = _file_info(url, progress, waits)
        if released.sha256 not in (None, remote.sha256):
            raise Failure(f"the hub has another file by this name now, with the SHA-256 {remote.sha256}")
        return remote

    return _fetch(_Source(url, released.name, find, lambda part: _check(part, released.name)), folder, progress, waits)


def fetch_known(
    url: str, name: str, remote: RemoteFile, folder: Path, progress: Progress, *, waits: Sequence[float] = _WAITS
) -> Path:
    """Download a file whose size and SHA-256 are known, from any server, as `fetch` does. name: that it gets.

    The user's token for the hub is not sent.
    """
    source = _Source(url, name, lambda: remote, lambda part: None, token=False)
    return _fetch(source, folder, progress, waits)


@dataclass(frozen=True, slots=True)
class _Source:
    """find: the size and SHA-256. check: raises Failure for a file that arrived whole and cannot be used."""

    url: str
    name: str
    find: Callable[[], RemoteFile]
    check: Callable[[Path], None]
    token: bool = True


def _fetch(source: _Source, folder: Path, progress: Progress, waits: Sequence[float]) -> Path:
    final = folder / source.name
    part = None
    remote = None
    try:
        remote = source.find()
        part = part_file(folder, source.name, remote.sha256)
        with _exclusive(folder / f"{source.name}.lock", source.name, progress):
            if not final.exists():
                _check_room(part, remote)
                _receive(source, part, remote, progress, waits)
                source.check(part)
                _put_in_place(part, final)
        return final
    except (Failure, OSError) as error:
        what = _reason(error, folder) if isinstance(error, OSError) else str(error)
        raise DownloadError(
            f"{source.name} could not be downloaded: {what.rstrip('.')}. {_kept(part, remote)} "
            f"To download it by hand, fetch {source.url} and put it into {folder}."
        ) from error


def _file_info(url: str, progress: Progress, waits: Sequence[float]) -> RemoteFile:
    tries, until = iter(waits), time.monotonic() + _PATIENCE
    while True:
        try:
            return wait_for(lambda: file_info(url), progress.poll)
        except TransientError as fault:
            # Some versions of the client retry for half a minute by themselves.
            _wait(fault, next(tries, None) if time.monotonic() < until else None, progress)


def _receive(source: _Source, part: Path, remote: RemoteFile, progress: Progress, waits: Sequence[float]) -> None:
    """Complete the partial file and verify its size and digest."""
    digest, done = _resume_state(part, remote, progress)
    tries = iter(waits)
    with _open_part(part) as file:
        while done < remote.size:
            before = done
            try:
                pieces = stream(source.url, done, remote.size, token=source.token)
                with closing(in_background(pieces, progress.poll)) as arriving:
                    for piece in arriving:
                        file.write(piece)
                        digest.update(piece)
                        done += len(piece)
                        progress.update(done, remote.size)
            except TransientError as fault:
                if done > before:
                    tries = iter(waits)
                _wait(fault, next(tries, None), progress)
        file.flush()
        # Before the rename, so that no power cut leaves a file of the final name with holes.
        wait_for(lambda: os.fsync(file.fileno()), progress.poll)
    if digest.hexdigest() != remote.sha256:
        part.unlink()
        raise Failure(
            f"what arrived has the SHA-256 {digest.hexdigest()} instead of {remote.sha256}: it was damaged in "
            "transit, and was deleted"
        )


@contextmanager
def _open_part(part: Path) -> Iterator[BinaryIO]:
    """Open to append; an empty partial file is removed."""
    try:
        with part.open("ab") as file:
            yield file
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def _resume_state(part: Path, remote: RemoteFile, progress: Progress) -> tuple[Any, int]:
    """The digest of what has arrived so far, and its number of bytes."""
    digest, done = hashlib.sha256(), 0
    if part.exists() and part.stat().st_size > remote.size:
        part.unlink()
    if part.exists():
        with part.open("rb") as file:
            left = part.stat().st_size
            while left and (block := file.read(min(left, 2**20))):
                progress.poll()
                digest.update(block)
                done += len(block)
                left -= len(block)
    return digest, done


def _wait(fault: TransientError, pause: float | None, progress: Progress) -> None:
    """Wait before the next retry; raises `fault` when there is none, or the hub asks to wait for too long."""
    if pause is None or fault.after > _LONGEST_WAIT:
        raise fault
    pause = max(pause, fault.after)
    progress.status(f"{fault}; retrying in {pause:.0f} s")
    until = time.monotonic() + pause
    while (left := until - time.monotonic()) > 0:
        progress.poll()
        time.sleep(min(left, _TICK))


@contextmanager
def _exclusive(path: Path, name: str, progress: Progress) -> Iterator[None]:
    """One download of a file at a time, across processes."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    waiting = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not waiting:
                progress.status(
                    f"another ComfyUI is downloading {name}; waiting for it. If there is no other one, delete {path}"
                )
            waiting = True
            progress.poll()
            time.sleep(_TICK)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it when it is released
            path.unlink()
        lock.release()


def _check_room(part: Path, remote: RemoteFile) -> None:
    need = remote.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if free < need:
        raise Failure(
            f"the disk of {part.parent} has {size_text(free)} free, and {size_text(need)} are needed; make room"
        )


def _check(part: Path, name: str) -> None:
    """Check the header; the loader reads the rest."""
    try:
        parse_weights(*read_header(part), name)
    except WeightsError as error:
        part.unlink()  # resuming it would give the same
        raise Failure(f"the file arrived as the hub has it, but cannot be used. {error}") from error


def _put_in_place(part: Path, final: Path) -> None:
    """Give the partial file its final name, unless a file has that name by now: that one stays."""
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


def _kept(part: Path | None, remote: RemoteFile | None) -> str:
    here = part.stat().st_size if part is not None and part.is_file() else 0
    if not here or part is None or remote is None:
        return "Nothing is kept."
    return f"{size_text(here)} of {size_text(remote.size)} are kept, and the next download resumes there."


def _reason(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full; make room"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{folder} cannot be written to ({error.strerror}); allow it, or name another folder for {folder.name} "
            "in extra_model_paths.yaml"
        )
    return str(error)
