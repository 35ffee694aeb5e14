"""A file whose SHA-256 is known, from any server: verified, resumed, and without the user's token."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from clear_core.hub.client import RemoteFile
from clear_core.hub.fetch import DownloadError, fetch_known

DATA = bytes(range(256)) * 400
KNOWN = RemoteFile(len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def server(hub: Any) -> Any:
    hub.files["network.pth"] = DATA
    return hub


def test_it_arrives_whole_and_no_token_is_sent(
    server: Any, folder: Path, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = fetch_known(server.url("network.pth"), "local.pth", KNOWN, folder, progress)
    assert path == folder / "local.pth" and path.read_bytes() == DATA
    assert [one.name for one in folder.iterdir()] == ["local.pth"]
    assert len(server.requests) == 2 and {request.token for request in server.requests} == {None}


def test_it_goes_on_where_the_connection_broke(server: Any, folder: Path, progress: Any) -> None:
    server.cuts = [40_000]
    fetch_known(server.url("network.pth"), "local.pth", KNOWN, folder, progress, waits=[0])
    assert server.ranges_asked() == [None, "bytes=40000-"]
    assert (folder / "local.pth").read_bytes() == DATA


def test_another_file_is_refused_and_deleted(server: Any, folder: Path, progress: Any) -> None:
    server.damage = DATA[::-1]
    with pytest.raises(DownloadError, match=rf"what arrived has the SHA-256 \w+ instead of {KNOWN.sha256}"):
        fetch_known(server.url("network.pth"), "local.pth", KNOWN, folder, progress)
    assert not list(folder.iterdir())
