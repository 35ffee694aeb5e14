"""What a run has said stands on the pack's panels: in subgraphs, on nodes that expand, after undo and a reload."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

from devtools import workflow
from devtools.page import RENDERERS, change_widgets, load, open_workflow, run_to_end, set_setting, shipped
from devtools.pictures import look_at, scene

RAN = re.compile(r"radius 8, .*CLEAR ran: \d+ layer calls by ", re.DOTALL)
_CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()"


def said(page: Page) -> Locator:
    return page.locator(".clear-run-text").filter(visible=True, has_text="CLEAR ran: ")


def open_demo(page: Page, seed: int) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    changes = workflow.sampling(width=128, height=128, steps=1, seed=seed)
    change_widgets(page, {**workflow.DEMO.changes(), **changes})
    page.evaluate(_CAPTURE)


def test_a_run_reports_in_the_panel_and_stays_there(page: Page, renderer: str, server: Any) -> None:
    open_demo(page, seed=700 + RENDERERS.index(renderer))
    for download in ("never", "when missing"):  # a node whose result the server has kept would say nothing
        change_widgets(page, {"CLEARWeightsLoader": {"download": download}})
        run_to_end(page)
    expect(said(page)).to_have_text(RAN)
    whole = said(page).evaluate(
        """(text) => {
            const [inner, outer] = [text, text.closest('.clear-panel')].map((e) => e.getBoundingClientRect())
            return text.scrollHeight <= text.clientHeight && inner.bottom <= outer.bottom + 1
        }"""
    )
    assert whole
    # Another file is not the one that was loaded.
    loaded = page.get_by_text(f"{workflow.DEMO.clear}: loaded")
    expect(loaded).to_have_count(1)
    change_widgets(page, {"CLEARWeightsLoader": {"weights_name": "clear_local_16.safetensors"}})
    expect(loaded).to_have_count(0)
    change_widgets(page, {"CLEARWeightsLoader": {"weights_name": workflow.DEMO.clear}})
    expect(loaded).to_have_count(1)
    page.evaluate(
        "() => { app.canvas.emitBeforeChange(); app.graph.nodes[0].title = 'changed'; app.canvas.emitAfterChange() }"
    )
    page.keyboard.press("Control+z")
    page.wait_for_function("() => !app.graph.nodes.some((node) => node.title === 'changed')")
    expect(said(page)).to_have_text(RAN)
    look_at(page, "CLEARApply")
    page.wait_for_timeout(1500)  # the page keeps its draft a moment later
    load(page, server.address)
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'CLEARApply')")
    look_at(page, "CLEARApply")
    expect(said(page)).to_have_text(RAN)


def test_it_reports_inside_a_subgraph(page: Page, renderer: str) -> None:
    open_demo(page, seed=710 + RENDERERS.index(renderer))
    page.evaluate(
        """() => {
            const inside = app.graph.nodes.filter((node) => node.type === 'CLEARApply')
            const { subgraph } = app.graph.convertToSubgraph(new Set(inside))
            window.inside = subgraph
        }"""
    )
    run_to_end(page)
    page.evaluate(
        """() => {
            const [node] = window.inside.nodes
            app.canvas.setGraph(window.inside)
            app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }"""
    )
    expect(said(page)).to_have_text(RAN)


def test_a_node_that_expands_reports_for_its_parts(page: Page, renderer: str, client: Any) -> None:
    client.upload_picture("example.png", scene(64, 64))
    open_workflow(page, shipped("02_image_to_4k", "CLEARHighRes"))
    values = {"target_megapixels": 0.1, "denoise": 0.5, "steps": 1, "stages": 1, "seed": 720 + len(renderer)}
    change_widgets(page, {**workflow.DEMO.changes(), "CLEARHighRes": values})
    change_widgets(page, {"UNETLoader": {"weight_dtype": "default"}})
    page.evaluate("() => app.queuePrompt(0)")
    expect(said(page)).to_have_text(RAN)
    client.interrupt()  # the rest would take a minute


def test_without_panels_the_page_shows_it(page: Page, renderer: str) -> None:
    set_setting(page, "ClearAttention.Picture", False)
    open_demo(page, seed=730 + RENDERERS.index(renderer))
    run_to_end(page)
    own = "(widget) => widget.name === '$$node-text-preview'"
    nodes = "app.graph.nodes.find((node) => node.type === 'CLEARApply')"
    assert RAN.match(page.evaluate(f"() => {nodes}.widgets.find({own}).value"))
    set_setting(page, "ClearAttention.Picture", True)
    expect(said(page)).to_have_text(RAN)
    assert not page.evaluate(f"() => {nodes}.widgets.some({own})")
