"""Load CLEAR Weights in a real server whose hub is one on the loopback and whose folder for weights is an extra one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.client import ClientError, ComfyClient, Prompt, Run
from devtools.hub import LoopbackHub
from devtools.server import ComfyServer

LOADER = "1"
HubPlace = tuple[LoopbackHub, ComfyServer, Path]
Place = tuple[LoopbackHub, ComfyClient, Path]


@pytest.fixture
def place(hub_place: HubPlace) -> Iterator[Place]:
    hub, server, folder = hub_place
    assert hub.requests == [], "nothing is asked at the start, nor between prompts"
    hub.rate, hub.hold_at = None, None
    hub.held.clear()
    hub.go.clear()
    yield hub, ComfyClient(server.address), folder
    hub.requests.clear()


def prompt(name: str, **inputs: str) -> Prompt:
    loader = {"class_type": "CLEARWeightsLoader", "inputs": {"weights_name": name, **inputs}}
    return {LOADER: loader, "2": {"class_type": "PreviewAny", "inputs": {"source": [LOADER, 0]}}}


def tooltip(client: ComfyClient) -> str:
    return client.object_info()["CLEARWeightsLoader"]["input"]["required"]["weights_name"][1]["tooltip"]


def test_looking_at_the_page_downloads_nothing(place: Place) -> None:
    hub, client, _ = place
    options = client.object_info()["CLEARWeightsLoader"]["input"]["required"]["weights_name"][1]["options"]
    assert set(hub.files) <= set(options)
    assert "clear_local_32.safetensors: released, 3.6 GB, not downloaded" in tooltip(client)
    client.get("/")
    client.get_json("/workflow_templates")
    assert hub.requests == []


def test_a_missing_file_is_downloaded_when_the_prompt_runs(place: Place) -> None:
    hub, client, folder = place
    name = "clear_local_16.safetensors"
    hub.rate = 120_000
    run = client.run(prompt(name))
    assert run.status == "success"
    assert (folder / name).read_bytes() == hub.files[name]
    assert [path.name for path in folder.iterdir()] == [name]
    done = [step.value for step in run.steps_of(LOADER)]
    assert {step.total for step in run.steps_of(LOADER)} == {len(hub.files[name])}
    assert len(done) > 2 and done == sorted(done) and done[-1] == len(hub.files[name])
    texts = [text for node, text in run.texts if node == LOADER]
    assert any(text.startswith(f"{name}: ") and " of 168 kB, " in text and "kB/s, " in text for text in texts[1:])
    assert texts[-1].startswith(f"{name}: downloaded into {folder}")
    assert f"{name}: released, 3.6 GB, here" in tooltip(client)

    hub.requests.clear()
    again = client.run(prompt(name))
    assert LOADER in again.cached
    assert client.run(prompt(name, download="never")).status == "success"
    assert hub.requests == []


def test_never_is_said_when_the_prompt_is_queued(place: Place) -> None:
    hub, client, folder = place
    name = "clear_local_32.safetensors"
    with pytest.raises(ClientError) as refusal:
        client.queue(prompt(name, download="never"))
    text = str(refusal.value)
    assert f"{name} is not here, and download is set to 'never'" in text
    assert f"fetch {hub.url(name)} (3.6 GB) by hand and put it into {folder}." in text
    with pytest.raises(ClientError, match="download is 'always'; choose one of: when missing, never"):
        client.queue(prompt(name, download="always"))
    assert hub.requests == []


def test_cancel_keeps_what_came_and_the_next_run_goes_on(place: Place) -> None:
    hub, client, folder = place
    name = "clear_local_8.safetensors"
    hub.hold_at = 100_000
    asked = False

    def interrupt(run: Run) -> None:
        nonlocal asked
        if run.steps_of(LOADER) and not asked:
            asked = True
            assert hub.held.wait(30)
            client.interrupt()

    stopped = client.run(prompt(name), interrupt)
    assert stopped.status == "interrupted"
    assert not hub.go.is_set(), "the hub was silent, and the prompt did not wait for it"
    (part,) = (path for path in folder.iterdir() if path.name.startswith(name))
    kept = part.read_bytes()
    assert 0 < len(kept) <= 100_000 and hub.files[name].startswith(kept)

    hub.go.set()
    run = client.run(prompt(name))
    assert run.status == "success"
    assert (folder / name).read_bytes() == hub.files[name]
    assert not part.exists()
    assert hub.ranges_asked() == [None, f"bytes={len(kept)}-"]


def test_a_failed_download_says_what_to_do(place: Place) -> None:
    hub, client, folder = place
    name = "clear_local_8_down_4.safetensors"
    hub.hub_statuses = [403]
    with pytest.raises(ClientError) as failure:
        client.run(prompt(name))
    text = str(failure.value)
    assert f"CLEARWeightsLoader (node {LOADER}) failed: {name} could not be downloaded: access is refused" in text
    assert f"Nothing is kept. To download it by hand, fetch {hub.url(name)} and put it into {folder}." in text
