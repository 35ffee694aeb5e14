"""The routes behind the button that downloads weights, in a real server whose hub is one on the loopback."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devtools.client import ClientError, ComfyClient, Prompt, Run
from devtools.hub import LoopbackHub
from devtools.server import ComfyServer

LOADER = "1"
NAME = "clear_local_16.safetensors"
OTHER = "clear_local_8.safetensors"
# Files that a run asks for: ComfyUI caches what a loader gave.
JOINED, INTERRUPTED = "clear_local_32.safetensors", "clear_local_8_down_4.safetensors"
_LOOKS, _PAUSE = 1200, 0.05  # how often to look for what is expected, and seconds between


class Button:
    """What the button asks of the server."""

    def __init__(self, hub: LoopbackHub, server: ComfyServer, folder: Path) -> None:
        self.hub, self.folder, self.address = hub, folder, server.address
        self.client = ComfyClient(server.address)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): headers[name] for name in headers}
        request = urllib.request.Request(f"{self.address}/clear_attention/{path}", body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text else None

    def press(self, name: str, path: str = "download") -> Any:
        status, state = self.post(path, json.dumps({"name": name}).encode())
        assert status == 200
        return state

    def state(self, name: str) -> Any:
        (state,) = (one for one in self.client.get_json("/clear_attention/downloads") if one["name"] == name)
        return state

    def wait_for(self, name: str, phase: str) -> Any:
        self.wait_until(lambda: self.state(name)["phase"] == phase)
        return self.state(name)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        for _ in range(_LOOKS):
            if holds():
                return
            time.sleep(_PAUSE)
        pytest.fail(str(self.client.get_json("/clear_attention/downloads")))


@pytest.fixture
def button(hub_place: tuple[LoopbackHub, ComfyServer, Path]) -> Iterator[Button]:
    """Nothing is here, and nothing of an earlier test."""
    hub, server, folder = hub_place
    made = Button(hub, server, folder)
    for name in hub.files:
        made.press(name, "download/cancel")
    for path in folder.iterdir():
        path.unlink()
    hub.rate, hub.hold_at, hub.damage, hub.hub_statuses = None, None, None, []
    hub.held.clear()
    hub.go.clear()
    hub.requests.clear()
    yield made
    hub.go.set()


def prompt(name: str, **inputs: str) -> Prompt:
    loader = {"class_type": "CLEARWeightsLoader", "inputs": {"weights_name": name, **inputs}}
    return {LOADER: loader, "2": {"class_type": "PreviewAny", "inputs": {"source": [LOADER, 0]}}}


def in_the_middle(button: Button, name: str = NAME) -> None:
    """A download that the button started, 100 kB of 168 kB here, the hub silent."""
    button.hub.hold_at = 100_000
    button.press(name)
    assert button.hub.held.wait(30)
    button.wait_until(lambda: button.state(name)["share"] is not None)


def test_a_file_is_downloaded_and_verified(button: Button) -> None:
    before = button.state(NAME)
    assert (before["phase"], before["size"], before["done"], before["text"]) == ("missing", "3.6 GB", None, "")
    assert button.press(NAME)["phase"] == "running"
    after = button.wait_for(NAME, "here")
    assert (after["verified"], after["size"], after["text"]) == (True, "168 kB", "")
    assert (button.folder / NAME).read_bytes() == button.hub.files[NAME]
    assert [path.name for path in button.folder.iterdir()] == [NAME]
    button.hub.requests.clear()
    assert button.press(NAME)["phase"] == "here"
    assert button.client.run(prompt(NAME, download="never")).status == "success"
    assert button.hub.requests == []


def test_a_file_of_your_own_is_here_and_left_alone(button: Button) -> None:
    (button.folder / NAME).write_bytes(b"mine")
    assert button.press(NAME)["phase"] == "here"
    assert button.state(NAME)["verified"] is False
    assert button.hub.requests == []
    assert (button.folder / NAME).read_bytes() == b"mine"


def test_cancel_keeps_what_came_and_the_button_resumes_there(button: Button) -> None:
    in_the_middle(button)
    running = button.state(NAME)
    assert running["phase"] == "running"
    assert 0 < running["share"] < 1
    stopped = button.press(NAME, "download/cancel")
    assert not button.hub.go.is_set(), "the hub was silent, and the button did not wait for it"
    (part,) = button.folder.iterdir()  # no lock beside it
    kept = part.stat().st_size
    assert (stopped["phase"], stopped["done"]) == ("missing", f"{kept / 1e3:.0f} kB")
    assert button.hub.files[NAME].startswith(part.read_bytes())

    button.hub.go.set()
    button.press(NAME)
    button.wait_for(NAME, "here")
    assert button.hub.ranges_asked() == [None, f"bytes={kept}-"]
    assert (button.folder / NAME).read_bytes() == button.hub.files[NAME]


def test_pressing_twice_is_one_download(button: Button) -> None:
    in_the_middle(button)
    assert button.press(NAME)["phase"] == "running"
    button.press(OTHER)
    button.hub.go.set()
    for name in (NAME, OTHER):
        button.wait_for(name, "here")
    asked = [request.url.rpartition("/")[2] for request in button.hub.requests if request.method == "HEAD"]
    assert sorted(asked) == sorted([NAME, OTHER])
    assert button.hub.ranges_asked() == [None, None]


def test_a_run_joins_the_buttons_download(button: Button) -> None:
    in_the_middle(button, JOINED)

    def go_on(run: Run) -> None:
        if run.steps_of(LOADER):
            button.hub.go.set()

    run = button.client.run(prompt(JOINED), go_on)
    assert run.status == "success"
    assert run.steps_of(LOADER)[-1].value == run.steps_of(LOADER)[-1].total == len(button.hub.files[JOINED])
    assert any(text.startswith(f"{JOINED}: downloaded into {button.folder}") for _, text in run.texts)
    assert button.hub.ranges_asked() == [None]


def test_cancelling_a_run_leaves_the_buttons_download_alone(button: Button) -> None:
    in_the_middle(button, INTERRUPTED)

    def interrupt(run: Run) -> None:
        if run.steps_of(LOADER):
            button.client.interrupt()

    assert button.client.run(prompt(INTERRUPTED), interrupt).status == "interrupted"
    assert button.state(INTERRUPTED)["phase"] == "running"
    button.hub.go.set()
    button.wait_for(INTERRUPTED, "here")
    assert button.hub.ranges_asked() == [None]


def test_the_button_shows_and_cancels_a_runs_download(button: Button) -> None:
    button.hub.hold_at = 100_000

    shown: list[Any] = []

    def cancel(run: Run) -> None:
        if run.steps_of(LOADER) and not shown:
            shown.append(button.state(INTERRUPTED)["phase"])
            button.press(INTERRUPTED, "download/cancel")

    with pytest.raises(ClientError, match=f"download of {INTERRUPTED} was cancelled on the panel"):
        button.client.run(prompt(INTERRUPTED), cancel)
    assert shown == ["running"]
    assert button.state(INTERRUPTED)["done"] is not None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"hub_statuses": [401]}, ("requires a login (HTTP 401)", "HF_TOKEN")),
        ({"hub_statuses": [404]}, ("no such file", "HTTP 404")),
        ({"damage": b"x" * 167_936}, ("SHA-256", "damaged in transit, and was deleted")),
    ],
)
def test_a_failure_says_what_to_do(button: Button, fault: dict[str, Any], words: tuple[str, ...]) -> None:
    if "damage" in fault:
        fault = {"damage": bytes(len(button.hub.files[NAME]))}
    for name, value in fault.items():
        setattr(button.hub, name, value)
    button.press(NAME)
    text = button.wait_for(NAME, "failed")["text"]
    for word in (*words, "Nothing is kept", f"fetch {button.hub.url(NAME)} and put it into {button.folder}"):
        assert word in text
    assert not any(button.folder.iterdir())
    # Pressed again it works, and the failure is forgotten.
    button.hub.damage = None
    button.press(NAME)
    assert button.wait_for(NAME, "here")["text"] == ""


def test_every_page_is_told(button: Button) -> None:
    socket = button.client._connect()
    try:
        button.press(NAME)
        told: list[Any] = []
        while not told or told[-1]["phase"] == "running":
            message = button.client._receive(socket)
            data = json.loads(message) if isinstance(message, str) else {}
            if data.get("type") == "clear_attention.download":
                told.append(data["data"])
    finally:
        socket.close()
    assert [state["name"] for state in told] == [NAME] * len(told)
    assert told[-1]["phase"] == "here"
    assert told[-1]["verified"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"name": "clear_local_64.safetensors"}', "'clear_local_64.safetensors' is not a released file"),
        (b'{"name": "../clear_local_16.safetensors"}', "known are: clear_local_16.safetensors, "),
        (b'{"name": "http://elsewhere.example/clear_local_16.safetensors"}', "is not a released file"),
        (b'{"name": ["clear_local_16.safetensors"]}', "is not a released file"),
        (b'{"file": "clear_local_16.safetensors"}', "the body must be"),
        (b"[]", "the body must be"),
        (b"not json", "the body must be"),
        (b"", "the body must be"),
    ],
)
@pytest.mark.parametrize("path", ["download", "download/cancel"])
def test_only_released_files_by_name(button: Button, path: str, body: bytes, words: str) -> None:
    status, answer = button.post(path, body)
    assert status == 400
    assert words in answer["error"]
    assert button.hub.requests == []


def test_no_other_site_and_no_link_starts_a_download(button: Button) -> None:
    body = json.dumps({"name": NAME}).encode()
    for prefix in ("", "api/"):
        path = f"{prefix}clear_attention/download"
        with pytest.raises(ClientError, match="40[45]"):  # a link is a GET
            button.client.get(f"/{path}?name={NAME}")
    assert button.post("download", body, Origin="http://elsewhere.example")[0] == 403
    status, answer = button.post("download", body, Content_Type="text/plain")  # what a form of another site can send
    assert (status, answer["error"]) == (400, "the content type is text/plain; it must be application/json")
    button.client.get("/clear_attention/downloads")
    assert button.state(NAME)["phase"] == "missing"
    assert button.hub.requests == []
