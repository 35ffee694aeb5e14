"""ComfyUI's own page in a real browser: the shipped workflows open whole in it, from its template browser."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect

from devtools import workflow
from devtools.page import load
from devtools.server import PACK_FOLDER

_OPENED = """async () => {
    const prompt = await app.graphToPrompt()
    const nodes = app.graph.nodes
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


def browse_to(page: Page, name: str) -> Locator:
    """A workflow's card in the template browser, with its picture."""
    templates = page.get_by_role("dialog")
    for _ in range(6):
        page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        templates.get_by_text(PACK_FOLDER, exact=True).first.click()
        card = templates.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        try:
            card.get_by_role("img").wait_for(timeout=10_000)
        except TimeoutError:
            # A busy page (1.32.9) reads the first of two entries of its IntersectionObserver, and the card stays empty.
            load(page, page.url.partition("#")[0])  # a busy page may not close the dialog on Escape either
        else:
            expect(card.get_by_role("img")).to_have_js_property("complete", True)
            return card
    pytest.fail(f"the template browser shows no picture of {name}")


@pytest.mark.parametrize("name", workflow.NAMES)
def test_it_opens_whole_and_sends_what_is_shipped(page: Page, name: str) -> None:
    errors: list[str] = []

    def threw(error: object) -> None:
        errors.append(str(error))

    page.on("pageerror", threw)
    browse_to(page, name).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_function("(name) => app.extensionManager.workflow.activeWorkflow.filename === name", arg=name)
    opened = page.evaluate(_OPENED)
    page.remove_listener("pageerror", threw)
    assert opened["unknown"] == opened["red"] == opened["small"] == errors == []
    assert opened["prompt"] == workflow.server_form(name)
    nodes = json.loads((workflow.ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    wired = {str(node["id"]): sum(slot["link"] is not None for slot in node["inputs"]) for node in nodes}
    assert opened["links"] == wired
