"""Downloads in the background: one of a file at a time, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clear_core.hub.downloads import Downloads, DownloadState
from clear_core.hub.fetch import DownloadError, fetch
from clear_core.hub.released import Released, find
from devtools.hub import LoopbackHub

ROOT = Path(__file__).parents[2]
NAME = "clear_local_16.safetensors"


def released() -> Released:
    found = find(NAME)
    assert found is not None
    return found


@pytest.fixture
def told() -> list[DownloadState]:
    return []


@pytest.fixture
def downloads(hub: LoopbackHub, folder: Path, told: list[DownloadState]) -> Any:
    def get(wanted: Released, progress: Any) -> Path:
        return fetch(wanted, folder, progress, endpoint=hub.address, waits=())

    return Downloads(get, lambda name, state: told.append(state))


def ended(download: Any) -> DownloadState:
    state = download.state
    while state.phase == "running":
        state = download.wait(state, 30)
    return state


def in_the_middle(hub: LoopbackHub, downloads: Downloads, holder: str) -> Any:
    hub.hold_at = 100_000
    download = downloads.start(released(), holder)
    assert hub.held.wait(30)
    while not download.state.done:
        download.wait(download.state, 30)
    return download


def test_progress_and_end(hub: LoopbackHub, folder: Path, downloads: Downloads, told: list[DownloadState]) -> None:
    size = len(hub.files[NAME])
    download = downloads.start(released(), "a")
    assert ended(download) == DownloadState("done", size, size)
    assert download.path == folder / NAME
    done = [state.done for state in told]
    assert done == sorted(done) and done[-1] == size
    numbers = [state.number for state in told]
    assert numbers == sorted(set(numbers))
    assert told[-1] == downloads.state(NAME)


def test_two_that_want_a_file_share_one_download(hub: LoopbackHub, downloads: Downloads) -> None:
    first = in_the_middle(hub, downloads, "run")
    second = downloads.start(released(), "page")
    assert second is first
    downloads.leave(first, "run")
    assert first.state.phase == "running", "the page still wants it"
    hub.go.set()
    assert ended(second).phase == "done"
    assert hub.ranges_asked() == [None]


def test_when_the_last_leaves_it_ends_and_the_next_resumes(
    hub: LoopbackHub, folder: Path, downloads: Downloads
) -> None:
    download = in_the_middle(hub, downloads, "run")
    downloads.leave(download, "run")
    assert download.state.phase == "cancelled"
    (part,) = folder.iterdir()  # no lock beside it
    kept = part.stat().st_size
    hub.go.set()
    again = downloads.start(released(), "run")
    assert again is not download
    assert ended(again).phase == "done"
    assert hub.ranges_asked() == [None, f"bytes={kept}-"]


def test_cancel_ends_it_for_all(hub: LoopbackHub, downloads: Downloads) -> None:
    download = in_the_middle(hub, downloads, "run")
    downloads.start(released(), "page")
    downloads.cancel(NAME)
    assert download.state.phase == "cancelled"
    downloads.cancel("clear_local_8.safetensors")  # there is none


def test_a_failure_is_kept_until_the_next_start(hub: LoopbackHub, downloads: Downloads) -> None:
    hub.hub_statuses = [404]
    assert "HTTP 404" in ended(downloads.start(released(), "a")).text
    assert downloads.state(NAME).phase == "failed"
    assert ended(downloads.start(released(), "a")).phase == "done"


@pytest.mark.parametrize("error", [DownloadError("no room"), ZeroDivisionError("a fault of our own")])
def test_whatever_goes_wrong_ends_the_download(error: Exception) -> None:
    def get(wanted: Released, progress: Any) -> Path:
        raise error

    state = ended(Downloads(get, lambda name, state: None).start(released(), "a"))
    assert state.phase == "failed"
    assert str(error) in state.text


_CLOSED = """
import atexit, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from clear_core.hub.downloads import Downloads
from clear_core.hub.fetch import fetch
from clear_core.hub.released import find

downloads = Downloads(lambda released, progress: fetch(released, Path(sys.argv[3]), progress), lambda *state: None)
atexit.register(downloads.close)
download = downloads.start(find(sys.argv[2]), "page")
while not download.state.done:
    download.wait(download.state, 30)
"""


def test_the_end_of_the_process_leaves_only_what_came(hub: LoopbackHub, folder: Path) -> None:
    hub.hold_at = 100_000
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(folder.parent / "home")}
    command = [sys.executable, "-c", _CLOSED, str(ROOT), NAME, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    assert not hub.go.is_set(), "the hub was silent, and the process did not wait for it"
    (part,) = folder.iterdir()
    assert part.suffix == ".part"
    assert hub.files[NAME].startswith(part.read_bytes())
