"""A released file fetched by the hub's real client from a hub on the loopback, on good days and on bad ones."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import zeros

from clear_core.hub.fetch import DownloadError, fetch
from clear_core.hub.released import DATE, REPOSITORY, REVISION, Released, find
from devtools import hub as loopback
from devtools.hub import LoopbackHub

NAME = "clear_local_16.safetensors"
PATIENT = (0.0,) * 4
Start = Callable[..., Path]


@pytest.fixture
def start(hub: LoopbackHub, folder: Path, progress: Any) -> Start:
    """Fetch NAME from the hub, or from another address, without long waits."""

    def run(released: Released | None = None, *, to: Path = folder, endpoint: str | None = None) -> Path:
        released = released or find(NAME)
        assert released is not None
        return fetch(released, to, progress, endpoint=endpoint or hub.address, waits=PATIENT)

    return run


@pytest.fixture
def data(weights: dict[str, bytes]) -> bytes:
    return weights[NAME]


@pytest.fixture
def part(folder: Path, data: bytes) -> Path:
    """Where what has arrived is kept."""
    return folder / f"{NAME}.{hashlib.sha256(data).hexdigest()[:12]}.part"


def refused(start: Start, hub: LoopbackHub, folder: Path, words: str, **options: Any) -> str:
    """Fetching fails with `words`, and always says where the file is and where it belongs."""
    with pytest.raises(DownloadError) as error:
        start(**options)
    text = str(error.value)
    assert re.search(words, text), text
    assert text.startswith(f"{NAME} could not be downloaded: ")
    endpoint = options.get("endpoint", hub.address)
    assert f"fetch {endpoint}/{REPOSITORY}/resolve/{REVISION}/{NAME} and put it into {folder}." in text
    assert ".." not in text
    return text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- good days -----------------------------------------------------------------------------------------


def test_the_table_is_the_loopback_hubs() -> None:
    assert (REPOSITORY, REVISION) == (loopback.REPOSITORY, loopback.REVISION)


@pytest.mark.parametrize("name", [NAME, "clear_local_8_down_4.safetensors"])
def test_a_file_arrives_whole_and_alone(
    start: Start, hub: LoopbackHub, folder: Path, progress: Any, weights: dict[str, bytes], name: str
) -> None:
    path = start(find(name))
    assert path == folder / name
    assert path.read_bytes() == weights[name]
    assert names(folder) == {name}, "nothing else is left, no cache either"
    assert path.stat().st_mtime == DATE
    assert [request.method for request in hub.requests] == ["HEAD", "GET", "GET"]
    done = [done for done, _ in progress.moves]
    assert done == sorted(done) and done[-1] == len(weights[name])
    assert {size for _, size in progress.moves} == {len(weights[name])}
    assert progress.texts == []


# ---- a connection that breaks ---------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 80_000), max_size=8))
def test_a_connection_cut_at_any_byte_is_taken_up_there(
    weights: dict[str, bytes], progress: Any, cuts: list[int]
) -> None:
    released = find(NAME)
    assert released is not None
    with LoopbackHub(weights) as hub, tempfile.TemporaryDirectory() as folder:
        hub.cuts = list(cuts)
        path = fetch(
            released, Path(folder), progress, endpoint=hub.address, waits=(0.0,)
        )  # one more try, again after each progress
        assert path.read_bytes() == weights[NAME]
        asked = hub.ranges_asked()
        ends = [sum(cuts[:i]) for i in range(len(asked))]
        assert asked == [f"bytes={end}-" if end else None for end in ends]


def test_a_connection_that_stays_broken_keeps_what_came(
    start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes, progress: Any
) -> None:
    hub.cuts = [65_536, *([0] * len(PATIENT))]
    text = refused(start, hub, folder, "the connection to 127.0.0.1:[0-9]+ failed|the connection ended early")
    assert "66 kB of 168 kB are kept, and the next download resumes there." in text
    assert len([said for said in progress.texts if "retrying" in said]) == len(PATIENT)
    assert part.read_bytes() == data[:65_536]
    assert names(folder) == {part.name}

    hub.requests.clear()
    assert start().read_bytes() == data
    assert hub.ranges_asked() == ["bytes=65536-"]
    assert names(folder) == {NAME}


def test_a_server_without_ranges_repeats_itself_and_nothing_is_lost(
    start: Start, hub: LoopbackHub, part: Path, data: bytes
) -> None:
    hub.ranges = False
    hub.cuts = [65_536, 50_000, 150_000]
    assert start().read_bytes() == data
    assert hub.ranges_asked() == [None, "bytes=65536-", "bytes=65536-", "bytes=150000-"]


def test_a_whole_part_is_only_checked(start: Start, hub: LoopbackHub, part: Path, data: bytes) -> None:
    part.write_bytes(data)
    assert start().read_bytes() == data
    assert hub.ranges_asked() == []


def test_a_part_that_is_too_long_is_begun_anew(start: Start, hub: LoopbackHub, part: Path, data: bytes) -> None:
    part.write_bytes(data + b"x")
    assert start().read_bytes() == data
    assert hub.ranges_asked() == [None]


# ---- what the hub answers ---------------------------------------------------------------------------------

STATUSES = [
    (401, "HTTP 401.*HF_TOKEN"),
    (403, "HTTP 403.*token.*proxy or firewall"),
    (404, "HTTP 404.*mirror"),
    (410, "HTTP 410"),
    (429, "HTTP 429.*wait some minutes.*HF_TOKEN"),
    (500, "HTTP 500.*try again later"),
    (503, "HTTP 503.*try again later"),
]


@pytest.mark.parametrize(("status", "words"), STATUSES)
def test_a_refusal_by_the_hub(start: Start, hub: LoopbackHub, folder: Path, status: int, words: str) -> None:
    hub.hub_statuses = [status] * 9
    text = refused(start, hub, folder, words)
    assert "Nothing is kept." in text
    assert names(folder) == set()
    tries = 1 + len(PATIENT) if status == 429 or status >= 500 else 1
    assert len(hub.requests) == tries


@pytest.mark.parametrize(("status", "words"), STATUSES)
def test_a_refusal_by_the_storage_in_the_middle(
    start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes, status: int, words: str
) -> None:
    part.write_bytes(data[:65_536])
    hub.storage_statuses = [status] * 9
    text = refused(start, hub, folder, words)
    assert "66 kB of 168 kB are kept" in text
    assert names(folder) == {part.name}
    hub.storage_statuses = []
    assert start().read_bytes() == data


def test_a_fault_that_passes_is_waited_for(start: Start, hub: LoopbackHub, data: bytes, progress: Any) -> None:
    hub.hub_statuses = [503, 429]
    hub.storage_statuses = [502]
    hub.extra_headers = {"Retry-After": "0"}
    assert start().read_bytes() == data
    assert ["HTTP 503" in progress.texts[0], "HTTP 429" in progress.texts[1], "HTTP 502" in progress.texts[2]] == [
        True
    ] * 3


def test_a_long_retry_after_fails_at_once(start: Start, hub: LoopbackHub, folder: Path) -> None:
    hub.hub_statuses = [429]
    hub.extra_headers = {"Retry-After": "3600"}
    refused(start, hub, folder, "HTTP 429")
    assert len(hub.requests) == 1


@pytest.mark.parametrize("kept", [0, 65_536])
@pytest.mark.parametrize("where", ["hub", "storage"])
def test_a_web_page_in_place_of_the_file(
    start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes, where: str, kept: int
) -> None:
    if kept:
        part.write_bytes(data[:kept])
    setattr(hub, f"page_from_{where}", True)
    refused(start, hub, folder, "a web page of the network.*Open the address in a browser")
    assert names(folder) == ({part.name} if kept else set())


def test_a_log_in_page_that_one_is_sent_to(start: Start, hub: LoopbackHub, folder: Path) -> None:
    hub.metadata = {"X-Linked-Size": None, "X-Linked-Etag": None, "Location": "http://log-in.invalid/"}
    refused(start, hub, folder, "a web page of the network")


@pytest.mark.parametrize(
    "metadata",
    [
        {"X-Linked-Etag": '"not a digest"'},
        {"X-Linked-Etag": '"' + "g" * 64 + '"'},
        {"X-Linked-Etag": '"../../../../etc/passwd"'},
        {"X-Linked-Size": "-5"},
        {"X-Linked-Size": "0"},
        {"X-Linked-Size": "many"},
        {"X-Linked-Size": "9" * 5000},
        {"X-Linked-Size": None},
    ],
    ids=str,
)
def test_metadata_that_cannot_be(start: Start, hub: LoopbackHub, folder: Path, metadata: dict[str, str | None]) -> None:
    hub.metadata = metadata
    refused(start, hub, folder, "the answer is not the hub's|the connection to .* failed")
    assert names(folder) == set()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Range": "bytes 0-9/SIZE"}, "was asked for bytes 65536 to .* answered with 'bytes 0-9/"),
        ({"Content-Range": "bytes 65536-239999/7"}, "answered with 'bytes 65536-239999/7'"),
        ({"Content-Range": "all of it"}, "answered with 'all of it'"),
    ],
)
def test_another_piece_than_was_asked_for(
    start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes, headers: dict[str, str], words: str
) -> None:
    part.write_bytes(data[:65_536])
    hub.storage_headers = {name: value.replace("SIZE", str(len(data))) for name, value in headers.items()}
    refused(start, hub, folder, words)
    assert part.read_bytes() == data[:65_536]


@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_than_was_promised(
    start: Start, hub: LoopbackHub, folder: Path, data: bytes, change: int
) -> None:
    hub.damage = (data + b"x")[: len(data) + change]
    refused(start, hub, folder, f"{len(data) + change} bytes instead of the {len(data)}")
    assert names(folder) == set()


def test_a_stream_without_end_is_cut_off(start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes) -> None:
    hub.damage = data * 3
    hub.storage_headers = {"Content-Length": None, "Connection": "close"}
    refused(start, hub, folder, f"more than the {len(data):,} bytes arrived that the hub announced")
    assert part.stat().st_size <= len(data)


# ---- what arrived ------------------------------------------------------------------------------------------


def test_a_wrong_digest_is_thrown_away(start: Start, hub: LoopbackHub, folder: Path, data: bytes) -> None:
    hub.damage = data[:-1] + bytes([data[-1] ^ 1])
    text = refused(start, hub, folder, f"SHA-256 [0-9a-f]{{64}} instead of {hashlib.sha256(data).hexdigest()}")
    assert "Nothing is kept." in text
    assert names(folder) == set()
    hub.damage = None
    assert start().read_bytes() == data


def test_a_damaged_part_is_found_out(start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes) -> None:
    part.write_bytes(b"x" + data[1:1000])
    refused(start, hub, folder, "SHA-256")
    assert names(folder) == set()


def test_a_digest_of_the_table_comes_first(start: Start, hub: LoopbackHub, folder: Path, data: bytes) -> None:
    known = hashlib.sha256(data).hexdigest()
    refused(
        start, hub, folder, f"another file by this name now.*{known}", released=Released(NAME, 16, 1, sha256="0" * 64)
    )
    assert hub.ranges_asked() == []
    assert start(Released(NAME, 16, 1, sha256=known)).read_bytes() == data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not weights at all", "not a safetensors file"),
        (b"\xff" * 8 + b"{}", "not a safetensors file"),
        (save({"lora.up.weight": zeros(2, 2)}), "not a complete set of CLEAR weights"),
    ],
)
def test_something_else_under_the_files_name_never_gets_it(
    start: Start, hub: LoopbackHub, folder: Path, content: bytes, words: str
) -> None:
    hub.files[NAME] = content
    refused(start, hub, folder, words)
    assert names(folder) == set()


def test_a_file_of_the_other_kind_is_refused(start: Start, hub: LoopbackHub, folder: Path) -> None:
    hub.files[NAME] = hub.files["clear_local_8_down_4.safetensors"]
    refused(start, hub, folder, "says down-sampling factor 1, but its pooling weights are for 4")
    assert names(folder) == set()


# ---- the disk ------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_seen_before(start: Start, hub: LoopbackHub, folder: Path) -> None:
    hub.metadata = {"X-Linked-Size": str(10**18)}
    text = refused(start, hub, folder, "the disk of .* has .* free, and 1000000000 GB are needed; make room")
    assert "Nothing is kept." in text
    assert hub.ranges_asked() == []


if Path("/dev/full").exists():  # Linux: a file on a disk that is always full

    def test_a_disk_that_fills_up_while_writing(start: Start, hub: LoopbackHub, folder: Path, part: Path) -> None:
        part.symlink_to("/dev/full")
        refused(start, hub, folder, f"the disk of {folder} is full; make room")


if os.name != "nt":
    import resource

    @pytest.fixture
    def small_files() -> Iterator[Callable[[int], None]]:
        """No file may grow beyond so many bytes: the system refuses in the middle of writing, as a full disk does."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_what_was_written_before_the_disk_refused_is_kept(
        start: Start,
        hub: LoopbackHub,
        folder: Path,
        part: Path,
        data: bytes,
        small_files: Callable[[int], None],
    ) -> None:
        small_files(65_536)
        text = refused(start, hub, folder, os.strerror(errno.EFBIG))
        assert "66 kB of 168 kB are kept" in text
        assert part.read_bytes() == data[:65_536]
        small_files(resource.RLIM_INFINITY)
        assert start().read_bytes() == data
        assert hub.ranges_asked() == [None, "bytes=65536-"]

    @pytest.fixture
    def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A folder that this process may not write to; the administrator, who may, is another user meanwhile."""
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_user")  # else the client looks into the home folder, maybe another's
        user = os.geteuid()
        with tempfile.TemporaryDirectory() as name:
            path = Path(name)
            path.chmod(0o555)
            if user == 0:
                os.seteuid(65534)
            yield path
            os.seteuid(user)
            path.chmod(0o755)

    def test_a_folder_that_cannot_be_written_to(start: Start, hub: LoopbackHub, read_only: Path) -> None:
        refused(
            start,
            hub,
            read_only,
            f"{read_only} cannot be written to .*Permission denied.*extra_model_paths",
            to=read_only,
        )
        assert hub.ranges_asked() == []


def test_a_file_that_appears_meanwhile_stays_as_it_is(
    start: Start, hub: LoopbackHub, folder: Path, progress: Any
) -> None:
    def put_one(done: int, size: int) -> None:
        (folder / NAME).write_bytes(b"put here by hand")

    progress.update = put_one
    assert start().read_bytes() == b"put here by hand"
    assert names(folder) == {NAME}


@pytest.mark.parametrize("appears", [False, True])
def test_a_disk_without_hard_links(
    start: Start, folder: Path, data: bytes, progress: Any, monkeypatch: pytest.MonkeyPatch, appears: bool
) -> None:
    def unknown(*args: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unknown)
    if appears:
        progress.update = lambda done, size: (folder / NAME).write_bytes(b"put here by hand")
    assert start().read_bytes() == (b"put here by hand" if appears else data)
    assert names(folder) == {NAME}


def test_a_fault_that_an_older_client_passes_on_as_it_came(
    start: Start, hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before version 1 the client gives up on a 503 with the error of requests, which knows no hub."""

    class OlderError(Exception):
        response = SimpleNamespace(status_code=503, headers={})

    def fail(url: str, **options: Any) -> None:
        raise OlderError("503 Server Error")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    refused(start, hub, folder, "failed \\(HTTP 503\\): try again later")


# ---- no network ------------------------------------------------------------------------------------------------


def test_connection_refused(start: Start, hub: LoopbackHub, folder: Path, progress: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        refused(
            start, hub, folder, "the connection to 127.0.0.1:[0-9]+ failed .*look at the network", endpoint=endpoint
        )
    assert len(progress.texts) == len(PATIENT)
    assert names(folder) == set()


def test_no_such_host(start: Start, hub: LoopbackHub, folder: Path) -> None:
    refused(start, hub, folder, "the connection to hub.invalid failed", endpoint="http://hub.invalid")


def test_the_client_is_not_installed(
    start: Start, hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(start, hub, folder, "huggingface_hub cannot be used .*pip install -r requirements.txt")


# ---- cancelling ----------------------------------------------------------------------------------------------


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, caught


def test_cancel_while_the_storage_is_silent(
    start: Start, hub: LoopbackHub, folder: Path, part: Path, data: bytes, progress: Any, cancelled: type[BaseException]
) -> None:
    hub.hold_at = 65_536
    running, caught = in_thread(start)
    assert hub.held.wait(30)
    assert progress.arrived(65_536)
    progress.cancel = True
    running.join(30)
    # The storage still holds its answer: the fetch did not wait for it.
    assert not running.is_alive() and not hub.go.is_set()
    assert isinstance(caught[0], cancelled)
    assert part.read_bytes() == data[:65_536]
    assert names(folder) == {part.name}

    hub.go.set()
    progress.cancel = False
    assert start().read_bytes() == data
    assert hub.ranges_asked() == [None, "bytes=65536-"]
    assert names(folder) == {NAME}


def test_cancel_while_the_hub_is_silent(
    start: Start, hub: LoopbackHub, folder: Path, progress: Any, cancelled: type[BaseException]
) -> None:
    hub.hold_hub = True
    running, caught = in_thread(start)
    assert hub.held.wait(30)
    progress.cancel = True
    running.join(30)
    assert not running.is_alive() and not hub.go.is_set()
    assert isinstance(caught[0], cancelled)
    assert names(folder) == set()


def test_cancel_between_two_tries(
    hub: LoopbackHub, folder: Path, progress: Any, cancelled: type[BaseException]
) -> None:
    released = find(NAME)
    assert released is not None
    hub.hub_statuses = [503]

    def cancel(text: str) -> None:
        progress.cancel = True

    progress.status = cancel
    with pytest.raises(cancelled):
        fetch(released, folder, progress, endpoint=hub.address, waits=(3600.0,))


def test_the_onlookers_own_error_comes_through(start: Start, folder: Path, part: Path, progress: Any) -> None:
    def stop(done: int, size: int) -> None:
        raise KeyboardInterrupt

    progress.update = stop
    with pytest.raises(KeyboardInterrupt):
        start()
    assert names(folder) == {part.name}
