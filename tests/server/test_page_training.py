"""The nodes that train, in ComfyUI's own page."""

from __future__ import annotations

import time

from playwright.sync_api import Page, expect

from devtools import workflow
from devtools.client import ComfyClient
from devtools.page import change_widgets, open_workflow, panel, shipped

_SEEDS = """() => Object.fromEntries(app.graph.nodes.flatMap((node) => (node.widgets ?? [])
    .filter((widget) => ['seed', 'noise_seed'].includes(widget.name))
    .map((widget) => [node.type, widget.value])))"""
_CONTROLLED = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
    .filter((widget) => widget.name === 'control_after_generate').map(() => node.type)).sort()"""


def test_run_changes_the_seed_of_the_image_and_no_seed_of_training(
    page: Page, client: ComfyClient, renderer: str
) -> None:
    """With another seed the images would be made again, and the training would not go on."""
    open_workflow(page, workflow.page_form("21_distill_weights"))
    files = workflow.DEMO.changes()
    small: workflow.Changes = {
        "CLEARTrainingSet": {"width": 96, "height": 96, "steps": 1, "name": "of_a_page"},
        "CLEARDistill": {"radius": 2},
    }
    change_widgets(page, {**files, **small})
    assert page.evaluate(_CONTROLLED) == ["PrimitiveInt", "PrimitiveInt", "RandomNoise"]
    before = page.evaluate(_SEEDS)
    page.evaluate("() => app.queuePrompt(0)")
    client.interrupt()
    page.wait_for_function(f"(before) => ({_SEEDS})().RandomNoise !== before", arg=before["RandomNoise"])
    assert page.evaluate(_SEEDS) == {**before, "RandomNoise": page.evaluate(_SEEDS)["RandomNoise"]}
    assert before.keys() == {"CLEARTrainingSet", "CLEARDistill", "RandomNoise"}
    while any(client.get_json("/queue").values()):
        client.interrupt()
        time.sleep(0.2)


def test_weights_that_will_be_made_count_as_connected(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("21_distill_weights", "CLEARApply"))
    change_widgets(page, {"CLEARDistill": {"radius": 6, "down_factor": 2}})
    expect(panel(page)).to_contain_text("auto (6)")
    expect(panel(page)).not_to_contain_text("no weights are connected")
