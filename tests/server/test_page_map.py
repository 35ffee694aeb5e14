"""CLEAR Attention Map in ComfyUI's own page: its maps in the panel, and the query that a click or a key moves."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from devtools import workflow
from devtools.page import RENDERERS, load, run_to_end
from devtools.pictures import look_at

ROWS, COLUMNS = 16, 12  # of 192 x 256 pixels
_CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()"
_FIXED = """() => {
    for (const widget of app.graph.nodes.flatMap((node) => node.widgets ?? [])) {
        if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
}"""
_NODE = "app.graph.nodes.find((node) => node.type === 'CLEARAttentionMap')"
_MADE = f"() => app.nodeOutputs[{_NODE}.id].clear_map[0]"


@pytest.fixture
def looked(page: Page, renderer: str, demo_prompt: Callable[..., Any]) -> None:
    """The map of the middle of an image that is higher than wide, made by the node itself."""
    prompt = demo_prompt({"CLEARApply": {"radius": 4}}, width=192, height=256)
    loaders = ("UNETLoader", "CLEARWeightsLoader", "DualCLIPLoader", "CLEARApply", "Prompt", "FluxGuidance", "Width")
    kept = [workflow.node_id(prompt, name) for name in (*loaders, "Height", "EmptySD3LatentImage")]
    nodes = {key: prompt[key] for key in kept}
    inputs = {
        "model": [workflow.node_id(prompt, "CLEARApply"), 0],
        "seed": 3 + RENDERERS.index(renderer),
        "block": "s0",
    }
    inputs |= {
        "positive": [workflow.node_id(prompt, "FluxGuidance"), 0],
        "percent": 0.2,
        "head": -1,
        "x": 0.5,
        "y": 0.5,
    }
    inputs |= {"latent_image": [workflow.node_id(prompt, "EmptySD3LatentImage"), 0]}
    nodes["99"] = {"class_type": "CLEARAttentionMap", "inputs": inputs}
    page.evaluate("(prompt) => app.loadApiJson(prompt, 'map')", nodes)
    page.evaluate(_FIXED)
    # To itself: the next node would lie over it.
    page.evaluate(f"() => {{ for (const node of app.graph.nodes) node.pos = [node === {_NODE} ? 0 : 6000, 0] }}")
    page.evaluate(_CAPTURE)
    look_at(page, "CLEARAttentionMap")
    run_to_end(page)
    expect(maps(page).locator("figure")).to_have_count(2)
    expect(maps(page)).to_have_attribute("aria-valuetext", "row 8, column 6")
    page.evaluate(_CAPTURE)  # what the run has changed, such as the node's size, is no part of a test's undo step


def maps(page: Page) -> Locator:
    return page.locator(".clear-maps").filter(visible=True)


def note(page: Page) -> Locator:
    return page.locator(".clear-maps-foot p").filter(visible=True)


def box_of(page: Page, part: str, number: int) -> dict[str, float]:
    box = maps(page).locator(part).nth(number).bounding_box()
    assert box
    return {**box}


def click_token(page: Page, number: int, row: int, column: int) -> None:
    """Near the token's lower right corner, in one of the two maps."""
    box = box_of(page, "rect", number)
    x, y = (column + 0.8) / COLUMNS, (row + 0.8) / ROWS
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def query(page: Page) -> tuple[float, float]:
    """The values of the node's widgets: y, x."""
    y, x = page.evaluate(f"() => ['y', 'x'].map((name) => {_NODE}.widgets.find((one) => one.name === name).value)")
    return y, x


def centre(row: int, column: int) -> Any:
    return pytest.approx(((row + 0.5) / ROWS, (column + 0.5) / COLUMNS), abs=1e-4)


@pytest.mark.usefixtures("looked")
def test_the_maps_stand_in_the_panel_alone(page: Page) -> None:
    assert page.evaluate(f"() => !{_NODE}.imgs?.length"), "the page draws the picture a second time"
    for number in (0, 1):
        box = box_of(page, "rect", number)
        assert box["height"] > 200
        assert box["width"] / box["height"] == pytest.approx(COLUMNS / ROWS, rel=0.02)
    expect(maps(page).locator("figcaption")).to_have_text(["Dense", "CLEAR, radius 4"])
    expect(note(page)).to_have_text("Click a map to move the query.")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open the whole picture").click()
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("() => document.images[0].naturalWidth") == 1600
    opened.value.close()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.usefixtures("looked")
def test_a_click_moves_the_query_in_one_undo_step(page: Page, client: Any, number: int) -> None:
    place = page.evaluate(f"() => [...{_NODE}.pos]")
    click_token(page, number, 4, 9)
    assert query(page) == centre(4, 9)
    expect(note(page)).to_have_text("The query of the next run is at row 4, column 9 (green ring).")
    # The mark is in both maps, around the middle of the token.
    for other in (0, 1):
        ring, box = box_of(page, ".clear-mark", other), box_of(page, "rect", other)
        x = (ring["x"] + ring["width"] / 2 - box["x"]) / box["width"] * COLUMNS
        y = (ring["y"] + ring["height"] / 2 - box["y"]) / box["height"] * ROWS
        assert (y, x) == pytest.approx((4.5, 9.5), abs=0.1)
    assert page.evaluate(f"() => [...{_NODE}.pos]") == pytest.approx(place, abs=10)  # Nodes 2.0 snaps to its grid
    page.mouse.click(5, 500)
    page.keyboard.press("Control+z")
    page.wait_for_function(f"() => {_NODE}?.widgets.find((one) => one.name === 'x').value === 0.5")
    assert query(page) == (0.5, 0.5)
    expect(maps(page)).to_have_attribute("aria-valuetext", "row 8, column 6")
    # What was clicked is the query of the next run.
    click_token(page, number, 13, 2)
    run_to_end(page)
    expect(note(page)).to_have_text("Click a map to move the query.")
    made = page.evaluate(_MADE)
    assert made["query"] == [13, 2]
    with Image.open(io.BytesIO(client.image(made))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for one in made["maps"]:
        left, top, width, height = one["place"]
        part = pixels[round(top) : round(top + height), round(left) : round(left + width)]
        # The square that the figure draws around its query, in a colour of its own.
        y, x = np.argwhere(np.abs(part - (0x35, 0xD0, 0xF2)).sum(-1) < 12).mean(0) + 0.5
        assert (y / height * ROWS, x / width * COLUMNS) == pytest.approx((13.5, 2.5), abs=0.1)


@pytest.mark.usefixtures("looked")
def test_the_arrow_keys_move_it_by_a_token(page: Page) -> None:
    maps(page).focus()
    for key, place in {"ArrowRight": (8, 7), "ArrowDown": (9, 7), "ArrowLeft": (9, 6), "ArrowUp": (8, 6)}.items():
        page.keyboard.press(key)
        expect(maps(page)).to_have_attribute("aria-valuetext", f"row {place[0]}, column {place[1]}")
        assert query(page) == centre(*place)
    for _ in range(COLUMNS):
        page.keyboard.press("ArrowRight")
    assert query(page) == centre(8, COLUMNS - 1)
    # The node is not deleted with what has the focus.
    page.keyboard.press("Delete")
    expect(maps(page)).to_be_visible()


@pytest.mark.usefixtures("looked")
def test_a_value_that_comes_through_a_link_stays(page: Page) -> None:
    page.evaluate(
        f"""() => {{
            const source = LiteGraph.createNode('PrimitiveFloat')
            source.pos = [6000, 900]
            app.graph.add(source)
            source.widgets[0].value = 0.25
            source.connect(0, {_NODE}, 'x')
        }}"""
    )
    page.evaluate("() => { app.canvas.emitBeforeChange(); app.canvas.emitAfterChange() }")
    expect(note(page)).to_have_text("x comes from a link: change it there.")
    expect(maps(page)).to_have_attribute("aria-valuetext", "row 8, column 3")
    click_token(page, 0, 4, 9)
    assert query(page) == (0.5, 0.5)


@pytest.mark.usefixtures("looked")
def test_it_stays_after_a_reload_and_says_when_the_picture_is_gone(page: Page, server: Any) -> None:
    click_token(page, 0, 4, 9)
    page.wait_for_timeout(1500)  # the page keeps its draft a moment later
    load(page, server.address)
    page.wait_for_function(f"() => {_NODE}")
    look_at(page, "CLEARAttentionMap")
    expect(maps(page)).to_have_attribute("aria-valuetext", "row 4, column 9")
    assert query(page) == centre(4, 9)
    page.route("**/view?**", lambda route: route.fulfill(status=404))
    load(page, server.address)
    page.wait_for_function(f"() => {_NODE}")
    look_at(page, "CLEARAttentionMap")
    expect(note(page)).to_have_text("The server no longer has this picture: run it again.")
    page.unroute("**/view?**")
