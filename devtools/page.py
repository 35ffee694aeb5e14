"""ComfyUI's own page in a real browser."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

from . import workflow
from .browser import find_browser

RENDERERS = ("classic", "nodes 2.0")
GIB = 2**30

# Nothing but the server under test is to be reached, and no sandbox where tests run as root.
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def browser() -> Iterator[Browser]:
    path = find_browser()
    assert path, "there is no browser: run the tests with python dev.py test"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield opened
        opened.close()


def open_page(browser: Browser, address: str) -> Page:
    """A page that has started, in a window of 1600 x 1000."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    # What lies over the graph: the welcome of a new user, a small map, what a workflow lacks.
    known = {
        "Comfy.TutorialCompleted": True,
        "Comfy.Minimap.Visible": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
    }
    assert page.request.post(f"{address}/settings", data=known).ok
    load(page, address)
    return page


def load(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
    # The last workflow, or the default one, comes a moment later.
    page.wait_for_function("window.app.extensionManager.workflow?.activeWorkflow", timeout=120_000)


def set_setting(page: Page, name: str, value: Any) -> None:
    page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])


def use_renderer(page: Page, name: str) -> None:
    """One of `RENDERERS`."""
    set_setting(page, "Comfy.VueNodes.Enabled", name == "nodes 2.0")


def open_workflow(page: Page, content: Any) -> None:
    """Open a workflow, its first CLEAR node at the upper left."""
    text = json.dumps(content)
    page.evaluate(
        """async (text) => {
            const quiet = { showMissingModelsDialog: false, showMissingNodesDialog: false }
            await app.loadGraphData(JSON.parse(text), true, true, null, quiet)
            const node = app.graph.nodes.find((node) => node.type.startsWith('CLEAR')) ?? app.graph.nodes[0]
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }""",
        text,
    )


def shipped(name: str, kind: str | None = None) -> Any:
    """A shipped workflow; with `kind`, its nodes of that type moved to where the page looks first, alone."""
    content = workflow.page_form(name)
    content["groups"] = []
    for node in content["nodes"]:
        if kind is not None and node["type"] == kind:
            node["pos"] = [0, 0]
        else:
            node["pos"] = [node["pos"][0] + 3000, node["pos"][1]]
    # `find` takes the first.
    content["nodes"].sort(key=lambda node: node["type"] != kind)
    return content


def change_widgets(page: Page, changes: workflow.Changes) -> None:
    """
    Give widgets other values: by node type, or by title.

    One change of the graph, as the user makes it: without its events a panel shows the new values only if one of its
    earlier requests happens to be answered afterwards.
    """
    page.evaluate(
        """(changes) => {
            app.canvas.emitBeforeChange()
            for (const node of app.graph.nodes) {
                for (const [name, value] of Object.entries(changes[node.type] ?? changes[node.title] ?? {})) {
                    node.widgets.find((widget) => widget.name === name).value = value
                }
            }
            app.canvas.emitAfterChange()
        }""",
        changes,
    )


def put_after(page: Page, before: str, kind: str, name: str, place: tuple[float, float]) -> None:
    """Put a new node into the wires that leave the node of type `before`; name: of its input."""
    page.evaluate(
        """([before, kind, name, place]) => {
            const source = app.graph.nodes.find((node) => node.type === before)
            const node = LiteGraph.createNode(kind)
            node.pos = place
            app.graph.add(node)
            const rest = source.outputs[0].links.map((id) => app.graph.getLink(id))
            source.connect(0, node, name)
            for (const link of rest) node.connect(0, app.graph.getNodeById(link.target_id), link.target_slot)
        }""",
        [before, kind, name, place],
    )


def put_multi_gpu(page: Page) -> None:
    """Put CLEAR Multi-GPU behind Apply CLEAR Attention, with nothing around it, and into view."""
    x, y = page.evaluate("() => [...app.graph.nodes.find((node) => node.type === 'CLEARApply').pos]")
    put_after(page, "CLEARApply", "CLEARMultiGPU", "model", (x, y + 1000))
    page.evaluate(
        """() => {
            const cut = app.graph.nodes.find((node) => node.type === 'CLEARMultiGPU')
            app.canvas.ds.offset = [300 - cut.pos[0], 200 - cut.pos[1]]
            app.canvas.setDirty(true, true) // the classic renderer places panels when it draws
        }"""
    )


def run_to_end(page: Page) -> None:
    """Queue the graph on the page and wait until the server has run it."""
    page.evaluate(
        """async () => {
            const ended = new Promise((done) => app.api.addEventListener('execution_success', done, { once: true }))
            await app.queuePrompt(0)
            await ended
        }"""
    )


_DROP = """async (data) => {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0))
    const transfer = new DataTransfer()
    transfer.items.add(new File([bytes], 'saved.png', { type: 'image/png' }))
    const options = { dataTransfer: transfer, bubbles: true, cancelable: true, clientX: 900, clientY: 600 }
    app.canvas.canvas.dispatchEvent(new DragEvent('drop', options))
}"""


def drop_png(page: Page, data: bytes) -> None:
    """Drop a file onto the graph, as with the mouse."""
    page.evaluate(_DROP, base64.b64encode(data).decode())


def panel(page: Page) -> Locator:
    return page.locator(".clear-panel").filter(visible=True).first


@contextmanager
def cards(page: Page, nodes_api: Any, count: int) -> Iterator[None]:
    """Answer the page as a machine with `count` GPUs of 24 GiB and bfloat16, through the server's own functions."""
    payloads, routes = (nodes_api.module(f"nodes.host.page.{name}") for name in ("payloads", "routes"))
    vaes = nodes_api.module("nodes.host.vae")
    machine = [payloads.MachineDevice(f"cuda:{i}", f"Card {i}", 20 * GIB, 24 * GIB) for i in range(count)]
    machine.append(payloads.MachineDevice("cpu", "cpu", 30 * GIB, 64 * GIB))

    def answer(route: Route) -> None:
        url = urllib.parse.urlsplit(route.request.url)
        query = dict(urllib.parse.parse_qsl(url.query))
        route.fulfill(json=routes.answer(url.path.rpartition("/")[2], query))

    def vae(width: int, height: int, tiling: str) -> Any:
        return vaes.VaePlan.of(tiling, 2178 * width * height * 2, 20 * GIB)

    pattern = re.compile(r"/clear_attention/(devices|bands|upscale|window|estimate)")
    page.route(pattern, answer)
    usual = nodes_api.module("clear_core.show.cost").Model()
    here = {"machine": lambda named=(): machine, "model_here": lambda device: usual, "vae_plan_here": vae}
    with mock.patch.multiple(routes, **here):
        yield
    page.unroute(pattern)
