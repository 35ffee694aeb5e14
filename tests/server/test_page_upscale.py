"""CLEAR High-Res Upscale on the page: its plan before the run, its progress and pictures in it, both renderers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from devtools import workflow
from devtools.page import RENDERERS, change_widgets, open_workflow, panel, shipped, use_renderer
from devtools.pictures import scene


@pytest.fixture(autouse=True)
def picture(client: Any) -> None:
    client.upload_picture("upscaled.png", scene(96, 64))


def open_upscale(page: Page, **values: Any) -> None:
    open_workflow(page, shipped("02_image_to_4k", "CLEARHighRes"))
    given = {"denoise": 0.5, "steps": 2, "devices": "cpu", **values}
    changes = {**workflow.DEMO.changes(), "CLEARHighRes": given, "LoadImage": {"image": "upscaled.png"}}
    change_widgets(page, changes)
    change_widgets(page, {"UNETLoader": {"weight_dtype": "default"}})


def plan(page: Page) -> Any:
    return panel(page).locator(".clear-plan")


def widget(page: Page, name: str) -> Any:
    return page.evaluate(
        """(name) => {
            const node = app.graph.nodes.find((node) => node.type === 'CLEARHighRes')
            const { value, disabled } = node.widgets.find((widget) => widget.name === name)
            return { value, disabled: Boolean(disabled) }
        }""",
        name,
    )


def test_the_plan_is_there_before_the_run(page: Page, renderer: str) -> None:
    open_upscale(page, target_megapixels=0.1)
    expect(plan(page)).to_have_text("96 x 64 → 192 x 128 → 384 x 256, 2 stages")
    rows = panel(page).locator("table tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(2)).to_contain_text(re.compile(r"2\. 384 x 256\s*1\s*0\.\d GiB\s*plain"))
    change_widgets(page, {"CLEARHighRes": {"bands": 4, "vae_tiling": "always"}})
    expect(rows.nth(2)).to_contain_text(re.compile(r"2\. 384 x 256\s*4\s*\d\.\d GiB\s*tiled"))


def test_the_size_by_each_input(page: Page, renderer: str) -> None:
    open_upscale(page, size_by="long side", long_side=384)
    expect(plan(page)).to_have_text("96 x 64 → 192 x 128 → 384 x 256, 2 stages")
    off = {name: widget(page, name)["disabled"] for name in ("target_megapixels", "long_side", "scale")}
    assert off == {"target_megapixels": True, "long_side": False, "scale": True}
    if renderer == "nodes 2.0":
        rows = page.locator(".lg-node-widget:has(> [inert])")
        expect(rows).to_have_text([re.compile(rf"^\s*{name}\b") for name in ("target_megapixels", "scale")])
    change_widgets(page, {"CLEARHighRes": {"size_by": "scale", "scale": 2.0}})
    expect(plan(page)).to_have_text("96 x 64 → 192 x 128, one stage")
    assert widget(page, "target_megapixels") == {"value": 16.8, "disabled": True}
    assert widget(page, "long_side") == {"value": 384, "disabled": True}
    change_widgets(page, {"CLEARHighRes": {"scale": 64.0, "size_by": "scale"}})
    expect(plan(page)).to_have_text(
        "96 x 64 → 192 x 128 → 384 x 256 → 768 x 512 → 1536 x 1024 → 3072 x 2048 → 6144 x 4096, 6 stages"
    )


def test_a_size_that_cannot_be_is_refused_in_words(page: Page, renderer: str, client: Any) -> None:
    name = client.upload_picture("large.png", scene(512, 64))  # another, where other tests have one of that name there
    open_upscale(page, size_by="scale", scale=64.0)
    change_widgets(page, {"LoadImage": {"image": name}})
    expect(panel(page)).to_contain_text("scale 64 would make 32768 x 4096 pixels of this 512 x 64 image")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("ImageScaleBy", {"scale_by": 2.5}, "240 x 160 → "),
        ("ImageInvert", {}, "96 x 64 → "),
        ("ImageScaleToTotalPixels", {"megapixels": 1.0}, "1254 x 836 → "),
    ],
)
def test_the_size_is_found_through_what_changes_it(page: Page, kind: str, values: dict[str, Any], words: str) -> None:
    use_renderer(page, "classic")
    open_upscale(page, target_megapixels=4.2)
    page.evaluate(
        """([kind, values]) => {
            app.canvas.emitBeforeChange()
            const by = (type) => app.graph.nodes.find((node) => node.type === type)
            const between = LiteGraph.createNode(kind)
            app.graph.add(between)
            for (const [name, value] of Object.entries(values)) {
                between.widgets.find((widget) => widget.name === name).value = value
            }
            by('LoadImage').connect(0, between, 'image')
            between.connect(0, by('CLEARHighRes'), 'image')
            app.canvas.emitAfterChange()
        }""",
        [kind, values],
    )
    expect(plan(page)).to_contain_text(words)


def test_where_the_size_is_not_known_it_says_so(page: Page, renderer: str) -> None:
    open_upscale(page)
    page.evaluate(
        """() => {
            app.canvas.emitBeforeChange()
            const upscale = app.graph.nodes.find((node) => node.type === 'CLEARHighRes')
            const stitch = LiteGraph.createNode('ImageStitch')
            app.graph.add(stitch)
            stitch.connect(0, upscale, 'image')
            app.canvas.emitAfterChange()
        }"""
    )
    expect(panel(page)).to_contain_text("The image's size is known when it runs.")
    expect(panel(page).locator("table")).to_have_count(0)


def test_it_can_be_watched(page: Page, renderer: str, client: Any) -> None:
    """One run: the stage, the step, the bar of the whole, and a picture of each stage on the node."""
    number = RENDERERS.index(renderer)  # another size and seed: what has run already does not run again
    open_upscale(page, target_megapixels=0.1 + 0.02 * number, stages=2, seed=40 + number, bands=1)
    expect(plan(page)).to_contain_text("2 stages")
    page.evaluate(
        """() => {
            const upscale = app.graph.nodes.find((node) => node.type === 'CLEARHighRes')
            const watched = (window.watched = { said: [], bar: [], sizes: [], ended: false })
            app.api.addEventListener('execution_success', () => (watched.ended = true), { once: true })
            // Whenever the page has drawn something: Nodes 2.0 may put a panel in again after a message.
            new MutationObserver(() => {
                const said = document.querySelector('.clear-upscale b')?.textContent
                if (said && said !== watched.said.at(-1)) watched.said.push(said)
            }).observe(document.body, { subtree: true, childList: true, characterData: true })
            app.api.addEventListener('progress_state', ({ detail }) => {
                const own = Object.values(detail.nodes).filter((one) => {
                    return String(one.display_node_id) === String(upscale.id) && one.state === 'running'
                })
                if (own.length) watched.bar.push(Math.min(...own.map((one) => one.value / one.max)))
            })
            app.api.addEventListener('executed', ({ detail }) => {
                const mine = String(detail.display_node) === String(upscale.id)
                if (mine) watched.sizes.push(...(detail.output?.images ?? []).map((image) => image.type))
            })
            app.queuePrompt(0)
        }"""
    )
    page.wait_for_function("() => watched.ended", timeout=300_000)
    watched = page.evaluate("() => watched")
    said = list(dict.fromkeys(watched["said"]))
    expected = [
        f"Stage {stage} of 2, {part}" for stage in (1, 2) for part in ("VAE encode", "step 1 of 2", "VAE decode")
    ]
    assert [text for text in said if text in expected] == expected
    assert watched["bar"] == sorted(watched["bar"])
    assert watched["bar"][0] < 0.2 and watched["bar"][-1] > 0.8
    assert watched["sizes"] == ["temp", "temp"]
    expect(panel(page).locator("progress")).to_have_count(0)
