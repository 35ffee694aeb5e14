"""A user at ComfyUI's own page: runs a workflow, watches it, cancels, comes back; in their own language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from devtools import workflow
from devtools.client import ComfyClient
from devtools.page import change_widgets, load, open_workflow, panel, set_setting, shipped, use_renderer

_SAVED = "() => app.graph.nodes.find((node) => node.type === 'CLEARApply').serialize()"
# The panel has grown with its text, whose length depends on the memory that is free.
_FITS = """() => {
    const text = document.querySelector('.clear-estimate');
    const [inner, outer] = [text, text?.closest('.clear-panel')].map((e) => e?.getBoundingClientRect().bottom);
    return inner <= outer + 1;
}"""
_KEPT = """(seed) => [localStorage, sessionStorage].some((kept) =>
    Object.values(kept).some((text) => text.includes(seed)))"""
_TEXT = "() => [...document.querySelectorAll('.clear-run-text')].map((text) => text.textContent).join('\\n')"


@pytest.fixture(scope="module")
def page(page: Page) -> Iterator[Page]:
    yield page
    set_setting(page, "Comfy.Locale", "en")


def open_demo(page: Page, **asked: int) -> None:
    use_renderer(page, "classic")
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    change_widgets(page, {**workflow.DEMO.changes(), **workflow.sampling(**asked)})


def wait_for_end(page: Page, client: ComfyClient) -> str:
    """How the newest prompt ended: the name of the last message about it."""
    for _ in range(3000):  # a step on a busy machine takes its time
        queue = client.get_json("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            newest = max(client.get_json("/history").values(), key=lambda entry: entry["prompt"][0])
            return newest["status"]["messages"][-1][0]
        page.wait_for_timeout(100)
    raise AssertionError("the run does not end")


def test_run_watch_cancel_and_run_again(page: Page, client: ComfyClient) -> None:
    open_demo(page, width=256, height=256, steps=99, seed=501)
    values = page.evaluate(_SAVED)["widgets_values"]
    page.get_by_role("button", name="Run", exact=True).first.click()
    # The tab's title counts the sampler's steps.
    page.wait_for_function("() => /\\[[1-9]\\d?%\\] SamplerCustomAdvanced/.test(document.title)", timeout=120_000)
    assert "\nCLEAR ran: " in page.evaluate(_TEXT)
    page.get_by_role("button", name="Cancel current run").click()
    assert wait_for_end(page, client) == "execution_interrupted"
    change_widgets(page, workflow.sampling(width=128, height=128, steps=2, seed=502))
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("() => !document.title.includes('%')", timeout=120_000)
    assert wait_for_end(page, client) == "execution_success"
    assert re.search(r"\nCLEAR ran: 4 layer calls by ", page.evaluate(_TEXT))
    page.wait_for_function("() => Object.values(app.nodeOutputs).some((made) => made?.images?.[0]?.type === 'output')")
    # What a run has shown on the node is not saved among its values.
    assert page.evaluate(_SAVED)["widgets_values"] == values


def test_what_was_on_the_page_is_there_after_a_reload(page: Page, server: Any) -> None:
    open_demo(page, width=768, height=512, steps=2, seed=50_300_503)
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    page.wait_for_function(_KEPT, arg="50300503")  # the page keeps its draft a moment later
    load(page, server.address)
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'CLEARApply')")
    assert page.evaluate("async () => (await app.graphToPrompt()).output") == prompt
    expect(panel(page)).to_be_visible()


@pytest.mark.parametrize("renderer", ["classic", "nodes 2.0"])
@pytest.mark.parametrize("language", ["zh", "ja", "en"])
def test_panels_are_in_the_pages_language(page: Page, language: str, renderer: str) -> None:
    set_setting(page, "Comfy.Locale", language)
    page.wait_for_timeout(1000)  # the page opens its workflow anew
    use_renderer(page, renderer)
    words = json.loads((workflow.ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["clearPanels"]
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    for name in ("tokens each patch sees", "attention cost"):
        expect(panel(page).get_by_text(words[name], exact=True)).to_be_visible()
    expect(panel(page).get_by_label(words["Image size"])).to_have_text(
        re.compile(words["$size (graph)"].replace("$size", "2048 x 2048").replace("(", r"\(").replace(")", r"\)"))
    )
    expect(panel(page).locator(".clear-estimate")).to_contain_text(words["RAM"])
    page.wait_for_function(_FITS)
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARWeightsLoader"))
    expect(panel(page)).to_contain_text(words["missing: $size to download when it runs"].replace("$size", "3.6 GB"))
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    expect(panel(page).locator(".clear-estimate")).to_contain_text(words["RAM"])
    page.wait_for_function(_FITS)
