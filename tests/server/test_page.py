"""ComfyUI's own page in a real browser: the shipped workflows open in it whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from harness import workflow
from harness.browser import find_browser

# Nothing but the server under test is to be reached, and no sandbox where tests run as root.
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_OPEN = """async ([name, text]) => {
    await window.app.handleFile(new File([text], name, { type: 'application/json' }))
    const prompt = await window.app.graphToPrompt()
    const nodes = window.app.graph.nodes ?? window.app.graph._nodes
    return {
        prompt: prompt.output,
        unknown: nodes.filter((node) => node.constructor.nodeData === undefined && !/Note$/.test(node.type))
            .map((node) => node.type),
        red: nodes.filter((node) => node.has_errors).map((node) => node.type),
        small: nodes.map((node) => [node.type, [...node.size], [...node.computeSize()]])
            .filter(([, size, least]) => size[0] + 1 < least[0] || size[1] + 1 < least[1]),
        links: Object.fromEntries(nodes.map((node) => [
            node.id, (node.inputs ?? []).filter((input) => input.link != null).length,
        ])),
    }
}"""


@pytest.fixture(scope="module")
def page(server: Any) -> Iterator[Page]:
    browser_path = find_browser()
    assert browser_path, "there is no browser: run the tests with python dev.py test"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(server.address)
        page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
        yield page
        browser.close()


@pytest.mark.parametrize("name", workflow.NAMES)
def test_it_opens_whole_and_sends_what_is_shipped(page: Page, name: str) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    text = (workflow.ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")
    opened = page.evaluate(_OPEN, [f"{name}.json", text])
    assert opened["unknown"] == opened["red"] == opened["small"] == errors == []
    assert opened["prompt"] == workflow.server_form(name)
    nodes = json.loads(text)["nodes"]
    wired = {str(node["id"]): sum(slot["link"] is not None for slot in node["inputs"]) for node in nodes}
    assert opened["links"] == wired
