"""The slider of Compare Images in ComfyUI's own page: pointer, keys, wheel, batches, undo, reload."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from devtools.page import load
from devtools.pictures import look_at

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)
_CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()"


def slider(page: Page) -> Locator:
    return page.get_by_role("slider").filter(visible=True)


def pressed(page: Page, name: str) -> Locator:
    return page.locator(".clear-slider-bar").get_by_role("button", name=name)


@pytest.fixture
def compared(page: Page, renderer: str, client: Any) -> None:
    """A red image beside a blue and a green one, compared."""
    names = [
        client.upload_picture(f"{name}.png", Image.new("RGB", (160, 160), colour))
        for name, colour in {"red": RED, "blue": BLUE, "green": GREEN}.items()
    ]
    nodes = {str(i): {"class_type": "LoadImage", "inputs": {"image": name}} for i, name in enumerate(names, 1)}
    nodes["4"] = {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["3", 0]}}
    nodes["5"] = {"class_type": "CLEARCompare", "inputs": {"image_a": ["1", 0], "image_b": ["4", 0], "gain": 4.0}}
    page.evaluate("(prompt) => app.loadApiJson(prompt, 'compare')", nodes)
    # To itself: the next node would lie over it.
    page.evaluate(
        "() => { for (const node of app.graph.nodes) node.pos = [node.type === 'CLEARCompare' ? 0 : 6000, 0] }"
    )
    page.evaluate(_CAPTURE)
    look_at(page, "CLEARCompare")
    page.evaluate(
        """async () => {
            const ended = new Promise((done) => app.api.addEventListener('execution_success', done, { once: true }))
            await app.queuePrompt(0)
            await ended
        }"""
    )
    expect(slider(page)).to_have_attribute("aria-valuenow", "50")
    page.wait_for_function(
        """() => [...document.querySelectorAll('.clear-slider img')].filter((image) => image.offsetParent)
            .every((image) => image.complete && image.naturalWidth === 160)"""
    )


def wait_for_colours(page: Page, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """An image is painted a moment after it has been loaded."""
    for _ in range(100):
        if colours(page) == (left, right):
            return
        page.wait_for_timeout(50)
    assert colours(page) == (left, right)


def colours(page: Page) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is seen well left and well right of the middle, below the labels."""
    with Image.open(io.BytesIO(slider(page).screenshot())) as shot:
        picture = shot.convert("RGB")
        x, y = picture.width // 2, picture.height * 3 // 4
        left, right = (picture.getpixel((x + by, y)) for by in (-30, 30))
    assert isinstance(left, tuple) and isinstance(right, tuple)
    return left, right


@pytest.mark.usefixtures("compared")
def test_the_pointer_moves_the_divider(page: Page) -> None:
    # The page itself shows none of them.
    assert not page.evaluate("() => app.graph.nodes.find((node) => node.type === 'CLEARCompare').imgs?.length")
    wait_for_colours(page, RED, BLUE)
    place = page.evaluate("() => [...app.graph.nodes.find((node) => node.type === 'CLEARCompare').pos]")
    box = slider(page).bounding_box()
    assert box
    y = box["y"] + box["height"] * 0.75
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, y, steps=5)
    page.mouse.up()
    expect(slider(page)).to_have_attribute("aria-valuenow", "90")
    wait_for_colours(page, RED, RED)
    page.mouse.click(box["x"] + box["width"] * 0.1, y)
    expect(slider(page)).to_have_attribute("aria-valuenow", "10")
    wait_for_colours(page, BLUE, BLUE)
    # Nodes 2.0 puts nodes on its grid in its own time.
    moved = page.evaluate("() => [...app.graph.nodes.find((node) => node.type === 'CLEARCompare').pos]")
    assert all(abs(now - before) <= 10 for now, before in zip(moved, place, strict=True))


@pytest.mark.usefixtures("compared")
def test_the_keyboard_does_all_of_it(page: Page) -> None:
    slider(page).focus()
    for key, value in {"Home": 0, "ArrowRight": 1, "PageUp": 11, "ArrowLeft": 10, "End": 100, "PageDown": 90}.items():
        page.keyboard.press(key)
        expect(slider(page)).to_have_attribute("aria-valuenow", str(value))
    expect(slider(page)).to_have_attribute("aria-valuetext", "90 % image_a")
    wait_for_colours(page, RED, RED)
    page.keyboard.press("s")
    expect(slider(page)).to_have_accessible_name("image_b, left of the divider; image_a, right of it")
    wait_for_colours(page, BLUE, BLUE)
    page.keyboard.press("+")
    expect(pressed(page, "Whole image")).to_have_text("1.3x")
    moved = "() => [...document.querySelectorAll('.clear-slider img')].map((image) => image.style.transform)"
    before = page.evaluate(moved)
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(moved)[0] == page.evaluate(moved)[1] != before[0]
    page.keyboard.press("0")
    expect(pressed(page, "Whole image")).to_have_text("1x")
    # The node is not deleted with what has the focus.
    page.keyboard.press("Delete")
    expect(slider(page)).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator(".clear-slider-bar")).to_contain_text("2 of 2")


@pytest.mark.usefixtures("compared")
def test_batches_go_on_pair_by_pair(page: Page) -> None:
    bar = page.locator(".clear-slider-bar")
    expect(bar).to_contain_text("1 of 2")
    expect(pressed(page, "Previous images")).to_be_disabled()
    pressed(page, "Next images").click()
    expect(bar).to_contain_text("2 of 2")
    expect(pressed(page, "Next images")).to_be_disabled()
    page.wait_for_function("() => [...document.querySelectorAll('.clear-slider img')].every((image) => image.complete)")
    wait_for_colours(page, RED, GREEN)


@pytest.mark.usefixtures("compared")
def test_the_wheel_is_the_canvas_until_the_slider_has_the_focus(page: Page) -> None:
    scale = "() => app.canvas.ds.scale"
    slider(page).hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => app.canvas.ds.scale > 1")
    expect(pressed(page, "Whole image")).to_have_text("1x")
    slider(page).focus()
    before = page.evaluate(scale)
    slider(page).hover()
    page.mouse.wheel(0, -100)
    expect(pressed(page, "Whole image")).to_have_text("1.3x")
    assert page.evaluate(scale) == before


@pytest.mark.usefixtures("compared")
def test_it_stays_after_undo_and_a_reload(page: Page, server: Any) -> None:
    page.evaluate(
        "() => { app.canvas.emitBeforeChange(); app.graph.nodes[0].title = 'changed'; app.canvas.emitAfterChange() }"
    )
    page.keyboard.press("Control+z")
    page.wait_for_function("() => !app.graph.nodes.some((node) => node.title === 'changed')")
    expect(slider(page)).to_be_visible()
    page.wait_for_timeout(1500)  # the page keeps its draft a moment later
    load(page, server.address)
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'CLEARCompare')")
    look_at(page, "CLEARCompare")
    expect(slider(page)).to_be_visible()


@pytest.mark.usefixtures("compared")
def test_images_that_are_gone_are_said_to_be(page: Page) -> None:
    page.route("**/view?**", lambda route: route.fulfill(status=404))
    pressed(page, "Next images").click()
    expect(page.locator(".clear-slider p")).to_have_text(re.compile("no longer has these images"))
    page.unroute("**/view?**")
