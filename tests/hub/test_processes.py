"""Fetching from processes of their own: the client's environment, and several that want the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clear_core.hub.fetch import fetch
from clear_core.hub.released import find
from devtools.hub import LoopbackHub

ROOT = Path(__file__).parents[2]
NAME = "clear_local_16.safetensors"

# The client reads its environment when it is imported: a fresh process for each.
_FETCH = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])  # after everything else: its `nodes` must not be taken for another
from clear_core.hub.fetch import DownloadError, fetch
from clear_core.hub.released import find

class Progress:
    def poll(self): pass
    def update(self, done, size): pass
    def status(self, text): print(text, flush=True)

try:
    print(fetch(find(sys.argv[2]), Path(sys.argv[3]), Progress(), waits=()))
except DownloadError as error:
    print(error)
"""


@contextmanager
def another(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that fetches NAME with the client as the environment sets it."""
    clean = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "NO_PROXY", "ALL_PROXY"))}
    clean["HF_HOME"] = str(folder.parent / "home")  # no token, no cache of this machine's user
    command = [sys.executable, "-c", _FETCH, str(ROOT), NAME, str(folder)]
    with subprocess.Popen(command, env=clean | environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def said(folder: Path, **environment: str) -> str:
    with another(folder, **environment) as process:
        return process.communicate(timeout=60)[0].strip()


def start(hub: LoopbackHub, folder: Path, progress: Any) -> Path:
    released = find(NAME)
    assert released is not None
    return fetch(released, folder, progress, endpoint=hub.address)


def test_mirror_and_token(hub: LoopbackHub, folder: Path, weights: dict[str, bytes]) -> None:
    hub.token = "hf_of_a_user"
    assert said(folder, HF_ENDPOINT=f"{hub.address}/", HF_TOKEN="hf_of_a_user") == str(folder / NAME)
    assert (folder / NAME).read_bytes() == weights[NAME]
    assert all((request.token is None) == request.to_storage for request in hub.requests), "the storage gets no token"


def test_without_a_token(hub: LoopbackHub, folder: Path) -> None:
    hub.token = "hf_of_a_user"
    text = said(folder, HF_ENDPOINT=hub.address, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    assert "HTTP 401" in text
    assert f"fetch {hub.url(NAME)} and put it into {folder}." in text


def test_proxy(hub: LoopbackHub, folder: Path) -> None:
    hub.storage_address = "http://storage.invalid"
    assert said(folder, HF_ENDPOINT="http://hub.invalid", http_proxy=hub.address) == str(folder / NAME)
    hosts = [request.url.split("/")[2] for request in hub.requests]
    assert hosts == ["hub.invalid", "hub.invalid", "storage.invalid"]


def test_a_network_that_falls_silent(hub: LoopbackHub, folder: Path) -> None:
    hub.hold_at = 65_536
    text = said(folder, HF_ENDPOINT=hub.address, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert f"the connection to {hub.address.removeprefix('http://')} failed" in text
    assert "timed out" in text
    assert "66 kB of 168 kB are kept, and the next download resumes there." in text
    assert not hub.go.is_set()


def test_offline_mode(hub: LoopbackHub, folder: Path) -> None:
    text = said(folder, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert "offline mode: unset HF_HUB_OFFLINE" in text
    assert f"fetch {hub.url(NAME)} and put it into {folder}." in text
    assert hub.requests == []
    assert list(folder.iterdir()) == []


def test_the_second_waits_and_finds_the_file(
    hub: LoopbackHub, folder: Path, progress: Any, weights: dict[str, bytes]
) -> None:
    hub.hold_at = 65_536
    with another(folder, HF_ENDPOINT=hub.address) as first:
        assert hub.held.wait(60)

        def let_it_go_on(text: str) -> None:
            assert "another ComfyUI is downloading clear_local_16.safetensors; waiting" in text
            hub.go.set()

        progress.status = let_it_go_on
        assert start(hub, folder, progress).read_bytes() == weights[NAME]
        assert first.communicate(timeout=60)[0].strip() == str(folder / NAME)
    assert hub.ranges_asked() == [None]
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert progress.moves == []


def test_who_waits_can_be_cancelled(
    hub: LoopbackHub, folder: Path, progress: Any, cancelled: type[BaseException]
) -> None:
    hub.hold_at = 65_536
    with another(folder, HF_ENDPOINT=hub.address) as first:
        assert hub.held.wait(60)

        def cancel(text: str) -> None:
            progress.cancel = True

        progress.status = cancel
        with pytest.raises(cancelled):
            start(hub, folder, progress)
        assert first.poll() is None and not hub.go.is_set()
        hub.go.set()
        assert first.communicate(timeout=60)[0].strip() == str(folder / NAME)


def test_who_waits_goes_on_where_the_first_was_killed(
    hub: LoopbackHub, folder: Path, progress: Any, weights: dict[str, bytes]
) -> None:
    hub.hold_at = 65_536
    with another(folder, HF_ENDPOINT=hub.address) as first:
        assert hub.held.wait(60)

        def kill(text: str) -> None:
            hub.hold_at = None
            first.kill()

        progress.status = kill
        assert start(hub, folder, progress).read_bytes() == weights[NAME]
    kept = hub.ranges_asked()[1]
    # What the killed one had not yet given to the system is fetched again, and no more.
    assert kept is None or 0 < int(kept.removeprefix("bytes=").rstrip("-")) <= 65_536
    assert [path.name for path in folder.iterdir()] == [NAME]
