"""One real server in each test process, on the demo checkpoint, with folders of its own."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from devtools import gallery, workflow
from devtools.checkpoints import make_demo_files
from devtools.checkpoints_plugins import make_plugin_files
from devtools.client import ComfyClient, Run
from devtools.hub import LoopbackHub, small_files
from devtools.machines import Machines, with_machines
from devtools.own_base import OwnBase, own_base
from devtools.page import RENDERERS, open_page, set_setting, use_renderer
from devtools.page import browser as open_browser
from devtools.server import BASE, PACK_FOLDER, ComfyServer, only_this_pack

Picture = np.ndarray
# How long a page may take under load; a condition that holds is not waited for.
_PATIENCE = 60_000
expect.set_options(timeout=_PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A wait in the browser that ran out of time is tried once more, like `retries` of Playwright's own runner, and the
    summary names it. What is wrong is wrong twice; nothing else is tried again."""
    for item in items:
        if "page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=[r"(?i)timeout \d+ms"]))


@pytest.fixture(scope="session")
def base(worker_id: str) -> Iterator[OwnBase]:
    """The base folder of this process's servers, with the demo files."""
    with own_base(worker_id) as base:
        base.add(make_demo_files)
        yield base


@pytest.fixture(scope="session")
def models(base: OwnBase) -> Path:
    """The folder of models of this process's servers."""
    return base.models


@pytest.fixture(scope="session")
def new_server(base: OwnBase, pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ComfyServer]:
    """Makes servers that have seen nothing yet: context managers."""
    assert (pack_folder / "__init__.py").is_file(), f"{pack_folder} is not there: run python dev.py test"

    def make() -> ComfyServer:
        folder = tmp_path_factory.mktemp("server")
        options = only_this_pack(folder) + base.options
        options += ["--use-pytorch-cross-attention", "--preview-method", "latent2rgb"]
        if page := os.environ.get("CLEAR_PAGE"):  # by hand: the folder `static` of another comfyui-frontend-package
            options += ["--front-end-root", page]
        return ComfyServer(folder / "server.log", options=options, base=base.path, cpu=True)

    return make


@pytest.fixture(scope="session")
def server(new_server: Callable[[], ComfyServer]) -> Iterator[ComfyServer]:
    with new_server() as running:
        yield running


@pytest.fixture(scope="session")
def plugin_files(base: OwnBase) -> None:
    """LoRAs, ControlNets and FLUX.1-schnell beside the demo files; the server sees them at once."""
    base.add(make_plugin_files)


@pytest.fixture(scope="session")
def new_small(base: OwnBase, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ComfyServer]:
    """Makes servers that have the small FLUX: context managers."""
    return lambda: gallery.small_server(tmp_path_factory.mktemp("small"), base=base.path, options=base.options)


@pytest.fixture(scope="session")
def small_prompt() -> Callable[..., workflow.Prompt]:
    """The demo's: the shipped workflow on the small FLUX with its distilled weights, in few steps."""

    def make(*changes: workflow.Changes, steps: int = 3, side: int = 256, seed: int = 1) -> workflow.Prompt:
        asked = workflow.sampling(width=side, height=side, steps=steps, seed=seed)
        text = {"Prompt": gallery.CASES["03_prompt_to_2k"].changes["Prompt"]}
        return workflow.changed(workflow.load(), workflow.SMALL.changes(), asked, text, *changes)

    return make


@pytest.fixture(scope="session")
def machines(new_small: Callable[[], ComfyServer], small_prompt: Callable[..., workflow.Prompt]) -> Iterator[Machines]:
    """A driver that listens, and one worker; a test that adds or stops workers leaves one."""
    with new_small() as driver, Machines(driver, new_small) as made:
        made.client.run(with_machines(small_prompt(steps=1, side=64), made.address))
        made.join()
        yield made


@pytest.fixture(scope="module")
def browser(nodes_api: Any) -> Iterator[Browser]:
    # `nodes_api` first: it starts a loop of its own, which no longer can be once the browser runs.
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Browser, server: ComfyServer) -> Iterator[Page]:
    """ComfyUI's page."""
    page = open_page(browser, server.address)
    page.set_default_timeout(_PATIENCE)
    yield page
    page.close()


@pytest.fixture(params=RENDERERS)
def renderer(page: Page, request: pytest.FixtureRequest) -> str:
    """The page in each of its renderers, with panels."""
    set_setting(page, "ClearAttention.Picture", True)
    use_renderer(page, request.param)
    return request.param


@pytest.fixture(scope="session")
def client(server: ComfyServer) -> ComfyClient:
    return ComfyClient(server.address)


@pytest.fixture(scope="session")
def object_info(client: ComfyClient) -> dict[str, Any]:
    return client.object_info()


@pytest.fixture(scope="session")
def demo_prompt() -> Callable[..., dict[str, Any]]:
    """The shipped workflow on the demo checkpoint; keyword arguments are those of `workflow.sampling`."""

    def make(*changes: workflow.Changes, **asked: Any) -> dict[str, Any]:
        asked = {"width": 128, "height": 128, "steps": 2, "seed": 1} | asked
        return workflow.changed(workflow.load(), workflow.DEMO.changes(), workflow.sampling(**asked), *changes)

    return make


@pytest.fixture(scope="session")
def picture(client: ComfyClient) -> Callable[[Run], Picture]:
    """The one image a run saved, as PIL reads it: uint8 [height, width, 3]."""

    def fetch(run: Run) -> Picture:
        (reference,) = run.images()
        with Image.open(io.BytesIO(client.image(reference))) as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB"))

    return fetch


@pytest.fixture(scope="session")
def shown(client: ComfyClient, picture: Callable[[Run], Picture]) -> Callable[..., Picture]:
    """Runs a prompt, all of whose attention layers must use the window, and gives its one picture.

    Further arguments are words that must stand on Apply CLEAR Attention at the end.
    """

    def run(prompt: Any, *words: str) -> Picture:
        done = client.run(prompt)
        apply = workflow.node_id(prompt, "CLEARApply")
        said = [text for node, text in done.texts if node == apply]
        assert "\nCLEAR ran: " in said[-1]
        assert "\nfull attention: " not in said[-1]
        assert all(word in said[-1] for word in words)
        return picture(done)

    return run


@pytest.fixture(scope="session")
def pack_folder() -> Path:
    return BASE / "custom_nodes" / PACK_FOLDER


@pytest.fixture(scope="module")
def hub_place(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackHub, ComfyServer, Path]]:
    """A hub, a server that knows this hub alone, and the folder for weights that its extra_model_paths name."""
    home = tmp_path_factory.mktemp("download")
    folder = home / "my weights"
    folder.mkdir()
    paths = home / "paths.yaml"
    paths.write_text(json.dumps({"mine": {"clear": str(folder)}}))  # JSON is YAML
    options = [*only_this_pack(home), "--extra-model-paths-config", str(paths)]
    with LoopbackHub(small_files()) as hub, pytest.MonkeyPatch.context() as environment:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            environment.delenv(name, raising=False)
        environment.setenv("HF_ENDPOINT", hub.address)
        environment.setenv("HF_HOME", str(home / "hf"))
        with ComfyServer(home / "server.log", options=options, cpu=True) as server:
            yield hub, server, folder
