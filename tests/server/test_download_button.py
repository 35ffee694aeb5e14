"""The button that downloads weights, on ComfyUI's own page in both renderers; the hub is one on the loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from devtools.client import ComfyClient
from devtools.hub import LoopbackHub
from devtools.page import RENDERERS, change_widgets, load, open_page, open_workflow, use_renderer
from devtools.server import ComfyServer

NAME = "clear_local_16.safetensors"
# Files that a run asks for, by renderer: ComfyUI caches what a loader gave.
IN_A_RUN = dict(zip(RENDERERS, ("clear_local_32.safetensors", "clear_local_8.safetensors"), strict=True))
SLOW = 2000  # bytes a second; a hub that fell silent would be asked again after ten seconds
HubPlace = tuple[LoopbackHub, ComfyServer, Path]

# Two loaders of the same file, and what makes the first one run.
_GRAPH = """(name) => {
    app.graph.clear()
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [300, 200]
    for (const x of [0, 420]) {
        const node = LiteGraph.createNode('CLEARWeightsLoader')
        node.pos = [x, 0]
        app.graph.add(node)
        node.widgets.find((widget) => widget.name === 'weights_name').value = name
        node.widgets.find((widget) => widget.name === 'download').value = x ? 'never' : 'when missing'
    }
    const preview = LiteGraph.createNode('PreviewAny')
    preview.pos = [0, 400]
    app.graph.add(preview)
    app.graph.nodes[0].connect(0, preview, 0)
    return app.graph.serialize()
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, hub_place: HubPlace) -> Iterator[Page]:
    page = open_page(browser, hub_place[1].address)
    yield page
    page.close()


@pytest.fixture(params=RENDERERS)
def loaders(page: Page, hub_place: HubPlace, request: pytest.FixtureRequest) -> Iterator[Locator]:
    """The panels of the two loaders; nothing is here."""
    hub, server, folder = hub_place
    client = ComfyClient(server.address)
    for name in hub.files:
        client.post("/clear_attention/download/cancel", {"name": name})
    for path in folder.iterdir():
        path.unlink()
    hub.rate, hub.hub_statuses = None, []
    hub.requests.clear()
    use_renderer(page, request.param)
    open_workflow(page, page.evaluate(_GRAPH, NAME))
    panels = page.locator(".clear-panel").filter(visible=True)
    expect(panels).to_have_count(2)
    yield panels
    hub.rate = None


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=name, exact=True)


def start(panel: Locator) -> None:
    panel.get_by_role("button", name=re.compile("^Download ")).click()


def test_download_cancel_resume(page: Page, hub_place: HubPlace, loaders: Locator) -> None:
    hub, _, folder = hub_place
    first, second = loaders.nth(0), loaders.nth(1)
    expect(loaders.filter(has_text="missing: 3.6 GB to download when it runs")).to_have_count(1)
    never = loaders.filter(has_text="missing, and download is never")
    hub.rate = SLOW
    never.get_by_role("button").click()  # the user's own act, whatever runs may do
    for panel in (first, second):
        expect(panel).to_contain_text(re.compile(r"downloading.*kB of 168 kB", re.DOTALL))
        assert 0 < panel.get_by_role("progressbar").evaluate("(bar) => bar.value") < 1
        expect(panel.get_by_role("button")).to_have_count(1)
    button(first, "Cancel").click()
    for panel in (first, second):
        expect(panel).to_contain_text(re.compile(r"\d kB of 168 kB are here"))
        expect(button(panel, "Resume")).to_be_visible()
        expect(panel.get_by_role("progressbar")).to_be_hidden()
    (part,) = folder.iterdir()
    kept = part.stat().st_size
    hub.rate = None
    button(first, "Resume").click()
    for panel in (first, second):
        expect(panel).to_contain_text("found, 168 kB, verified")
        expect(panel.get_by_role("button")).to_have_count(0)
    assert hub.ranges_asked() == [None, f"bytes={kept}-"]
    assert (folder / NAME).read_bytes() == hub.files[NAME]


def test_a_reload_shows_the_download_again(page: Page, hub_place: HubPlace, loaders: Locator) -> None:
    hub, server, _ = hub_place
    hub.rate = SLOW
    start(loaders.first)
    expect(loaders.first).to_contain_text("kB of 168 kB")
    load(page, server.address)
    open_workflow(page, page.evaluate(_GRAPH, NAME))
    expect(loaders.first).to_contain_text(re.compile(r"downloading.*kB of 168 kB", re.DOTALL))
    expect(button(loaders.first, "Cancel")).to_be_visible()
    hub.rate = None
    expect(loaders.first).to_contain_text("found, 168 kB, verified")
    assert hub.ranges_asked() == [None]


def test_a_failure_is_said_and_the_button_stays(page: Page, hub_place: HubPlace, loaders: Locator) -> None:
    hub, _, folder = hub_place
    hub.hub_statuses = [403]
    start(loaders.first)
    expect(loaders.first).to_contain_text("access is refused (HTTP 403)")
    expect(loaders.first).to_contain_text(f"fetch {hub.url(NAME)} and put it into {folder}.")
    start(loaders.first)
    expect(loaders.first).to_contain_text("found, 168 kB, verified")
    expect(loaders.first).not_to_contain_text("access is refused")


def test_a_runs_download_is_shown_and_is_one_with_the_buttons(
    page: Page, hub_place: HubPlace, loaders: Locator, request: pytest.FixtureRequest
) -> None:
    hub, _, _ = hub_place
    hub.rate = SLOW
    name = IN_A_RUN[request.node.callspec.params["loaders"]]
    change_widgets(page, {"CLEARWeightsLoader": {"weights_name": name, "download": "when missing"}})
    page.evaluate("() => app.queuePrompt(0)")
    expect(loaders.first).to_contain_text(re.compile(r"downloading.*kB of 168 kB", re.DOTALL))
    expect(button(loaders.first, "Cancel")).to_be_visible()
    hub.rate = None
    expect(loaders.first).to_contain_text("found, 168 kB, verified")
    expect(loaders.first).to_contain_text("size and SHA-256 verified")
    assert hub.ranges_asked() == [None]
