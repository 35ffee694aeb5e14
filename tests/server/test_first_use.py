"""A new user's way: the first template, a prompt, Run; nothing else is asked for.

CLEAR_WRITE_PICTURES=1 python dev.py test tests/server/test_first_use.py   takes the pictures of docs/first_image.md.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from devtools import workflow
from devtools.client import ComfyClient
from devtools.hub import LoopbackHub
from devtools.own_base import OwnBase
from devtools.page import change_widgets, open_page
from devtools.pictures import save_small
from devtools.server import PACK_FOLDER, ComfyServer, only_this_pack

WEIGHTS = "clear_local_16.safetensors"
# Model files and sizes that a CPU can run; everything else stays as it ships.
SMALL: workflow.Changes = {
    **{name: values for name, values in workflow.DEMO.changes().items() if name != "CLEARWeightsLoader"},
    "Size": {"width": 96, "height": 64},
    "KSampler": {"steps": 2},
    "CLEARHighRes": {"target_megapixels": 0.1, "steps": 2},
}


@pytest.fixture(scope="module")
def place(base: OwnBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ComfyServer, Path]]:
    """A server with model files and without CLEAR's weights, which its hub has; the folder they go to."""
    home = tmp_path_factory.mktemp("first use")
    folder = home / "clear"
    folder.mkdir()
    paths = home / "paths.yaml"
    paths.write_text(json.dumps({"mine": {"clear": str(folder)}}), encoding="utf-8")  # JSON is YAML
    options = [*only_this_pack(home), *base.options, "--extra-model-paths-config", str(paths)]
    weights = (base.models / "clear" / workflow.DEMO.clear).read_bytes()
    with LoopbackHub({WEIGHTS: weights}) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.address)
        environment.setenv("HF_HOME", str(home / "hf"))
        with ComfyServer(home / "server.log", options=options, base=base.path, cpu=True) as server:
            yield server, folder


@pytest.fixture
def page(browser: Browser, place: tuple[ComfyServer, Path]) -> Iterator[Page]:
    page = open_page(browser, place[0].address)
    page.set_default_timeout(60_000)
    yield page
    page.close()


def show(page: Page, name: str) -> None:
    """A picture for docs/first_image.md, where that is asked for."""
    if os.environ.get("CLEAR_WRITE_PICTURES"):
        page.wait_for_timeout(2000)  # pictures and fonts come one after another
        save_small(page.screenshot(), workflow.ROOT / "docs" / "images" / f"first_{name}.png")


def test_the_first_template_needs_a_prompt_and_run(page: Page, place: tuple[ComfyServer, Path]) -> None:
    server, folder = place
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    templates = page.get_by_role("dialog")
    templates.get_by_text(PACK_FOLDER, exact=True).first.click()
    show(page, "1_templates")
    # In the order in which the server's file system lists them.
    templates.get_by_test_id("template-workflow-01_prompt_to_4k").click()
    expect(templates).to_have_count(0)
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'CLEARPreset')")
    show(page, "2_opened")
    change_widgets(page, SMALL)

    words = "A paper boat on a lake of ink"
    prompt = page.locator("textarea").filter(visible=True).first
    prompt.fill(words)
    page.evaluate(
        """() => {
            window.ended = null
            for (const end of ['execution_success', 'execution_error', 'execution_interrupted']) {
                app.api.addEventListener(end, ({ detail }) => { window.ended = { end, detail } })
            }
        }"""
    )
    page.get_by_role("button", name="Run", exact=True).first.click()
    expect(page.locator(".clear-run-text").first).to_be_visible(timeout=300_000)
    show(page, "3_running")
    page.wait_for_function("() => window.ended", timeout=300_000)
    ended = page.evaluate("() => window.ended")
    assert ended["end"] == "execution_success", ended
    expect(page.get_by_role("dialog")).to_have_count(0)

    # The weights came by themselves, and the node says what it chose.
    assert [file.name for file in folder.iterdir()] == [WEIGHTS]
    said = page.locator(".clear-run-text").filter(has_text="balanced: ")
    expect(said).to_contain_text(f"radius {workflow.DEMO.radius}, {WEIGHTS}")
    expect(said).to_contain_text("CLEAR ran: ")
    show(page, "4_finished")

    client = ComfyClient(server.address)
    outputs = client.get_json(f"/history/{ended['detail']['prompt_id']}")[ended["detail"]["prompt_id"]]["outputs"]
    (saved,) = (one for output in outputs.values() for one in output.get("images", []) if one["type"] == "output")
    with Image.open(io.BytesIO(client.image(saved))) as image:
        assert image.size == (384, 256)
        info: dict[str, Any] = image.info
    assert words in info["prompt"]
    runs = json.loads(info["clear_attention"])["runs"]
    assert [(run["preset"], run["width"], run["height"]) for run in runs] == [
        ("balanced", 192, 128),
        ("balanced", 384, 256),
    ]
    assert all(run["weights"]["file"] == WEIGHTS and run["full_attention_share"] == 0 for run in runs)
