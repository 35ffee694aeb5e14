"""The A/B run of Apply CLEAR Attention in ComfyUI's own page: two real runs, their images and times on the node."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import Locator, Page, Request, Route, expect

from devtools import workflow
from devtools.page import RENDERERS, change_widgets, open_workflow, shipped
from devtools.server import PACK_FOLDER

_LONG = 240_000  # two runs on a busy machine
_PROMPT = "async () => (await app.graphToPrompt()).output"
_APPLY = "app.graph.nodes.find((node) => node.type === 'CLEARApply')"


def button(page: Page, name: str = "Compare with full attention") -> Locator:
    return page.get_by_role("button", name=name).filter(visible=True)


def status(page: Page) -> Locator:
    return page.locator(".clear-ab .clear-note").filter(visible=True)


def open_demo(page: Page, seed: int, steps: int = 3) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    changes = workflow.sampling(width=128, height=128, steps=steps, seed=seed)
    change_widgets(page, {**workflow.DEMO.changes(), **changes})


def nodes(prompt: Any, kind: str) -> list[Any]:
    return [node for node in prompt.values() if node["class_type"] == kind]


def test_both_runs_show_their_images_and_times(page: Page, renderer: str) -> None:
    open_demo(page, seed=810 + RENDERERS.index(renderer))
    before = page.evaluate(_PROMPT)
    sent: list[Any] = []

    def heard(request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/prompt"):
            sent.append(json.loads(request.post_data or ""))

    page.on("request", heard)
    button(page).press("Enter")
    expect(page.get_by_role("slider").filter(visible=True)).to_be_visible(timeout=_LONG)
    page.remove_listener("request", heard)
    expect(status(page)).to_have_text(re.compile(r"Full attention takes \d+\.\d\d times as long to sample"))
    slider = page.get_by_role("slider").filter(visible=True)
    expect(slider).to_have_accessible_name(re.compile(r"full attention, [\d.]+ s, left of .*CLEAR, [\d.]+ s, right of"))
    images = page.locator(".clear-ab img")
    page.wait_for_function(
        """() => [...document.querySelectorAll('.clear-ab img')]
            .every((image) => image.naturalWidth === 128 && image.offsetWidth > 100)"""
    )
    sources = [images.nth(i).get_attribute("src") for i in range(2)]
    assert sources[0] != sources[1]

    full, clear = (one["prompt"] for one in sent)
    assert not nodes(full, "CLEARApply")
    assert len(nodes(clear, "CLEARApply")) == 1
    loader, apply = (workflow.node_id(clear, name) for name in ("UNETLoader", "CLEARApply"))
    users = [key for key, node in clear.items() if node["inputs"].get("model") == [apply, 0]]
    assert users
    assert all(full[key]["inputs"]["model"] == [loader, 0] for key in users)
    # The page's own prompt, but for the mark that has the server sample again.
    for node in clear.values():
        node["inputs"].pop("clear_run", None)
    assert clear == before == page.evaluate(_PROMPT)


def test_in_a_subgraph_and_again_though_nothing_has_changed(page: Page, renderer: str) -> None:
    open_demo(page, seed=820 + RENDERERS.index(renderer))
    page.evaluate(
        """() => {
            const inside = app.graph.nodes.filter((node) => node.type === 'CLEARApply')
            const { subgraph } = app.graph.convertToSubgraph(new Set(inside))
            const [node] = subgraph.nodes
            app.canvas.setGraph(subgraph)
            app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }"""
    )
    for _ in range(2):
        button(page).press("Enter")
        expect(button(page, "Cancel the comparison")).to_be_visible()
        expect(status(page)).to_have_text(re.compile(r"Full attention takes"), timeout=_LONG)


def test_cancel(page: Page, renderer: str, client: Any) -> None:
    open_demo(page, seed=830 + RENDERERS.index(renderer), steps=99)
    button(page).press("Enter")
    expect(status(page)).to_have_text(re.compile(r"Run 1 of two, full attention: step \d+ of 99"), timeout=_LONG)
    button(page, "Cancel the comparison").press("Enter")
    expect(status(page)).to_have_text("full attention: cancelled\nCLEAR: cancelled")
    page.wait_for_function(
        "async () => { const queue = await app.api.getQueue(); return !queue.Running.length && !queue.Pending.length }"
    )


def test_a_run_that_the_server_refuses_is_named_and_the_other_counts(page: Page, renderer: str) -> None:
    open_demo(page, seed=840 + RENDERERS.index(renderer))

    def spoil(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        if not nodes(body["prompt"], "CLEARApply"):
            nodes(body["prompt"], "UNETLoader")[0]["inputs"]["unet_name"] = "nowhere.safetensors"
        route.continue_(post_data=json.dumps(body))

    page.route("**/prompt", spoil)
    button(page).press("Enter")
    expect(status(page)).to_have_text(
        re.compile(r"full attention: UNETLoader: Value not in list: .*nowhere"), timeout=_LONG
    )
    page.unroute("**/prompt")
    label = page.locator(".clear-ab .clear-slider-after span")
    expect(label).to_have_text(re.compile(r"CLEAR, [\d.]+ s"))


def test_a_run_that_fails_on_the_way_is_named(page: Page, renderer: str) -> None:
    open_demo(page, seed=850 + RENDERERS.index(renderer))
    change_widgets(page, {"CLEARApply": {"radius": 9, "blocks": "s30"}})  # the demo model has no such block
    button(page).press("Enter")
    expect(status(page)).to_have_text(re.compile(r"^CLEAR: CLEARApply: .*block"), timeout=_LONG)
    expect(page.locator(".clear-ab .clear-slider-before span")).to_have_text(re.compile(r"full attention, [\d.]+ s"))
    page.keyboard.press("Escape")  # the page's own dialog of the error


def test_a_bypassed_node_says_why_it_does_nothing(page: Page, renderer: str) -> None:
    open_demo(page, seed=860)
    page.evaluate(f"() => {{ {_APPLY}.mode = 4 }}")
    button(page).press("Enter")
    expect(status(page)).to_have_text("This node does not run: it is bypassed or muted.")


def test_what_needs_clear_is_bypassed_too(page: Page) -> None:
    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    prompt = {
        "1": node("UNETLoader", unet_name="a"),
        "2": node("CLEARApply", model=["1", 0], radius=4),
        "3": node("CLEARMultiGPU", model=["2", 0], bands=4),
        "4": node("LoraLoaderModelOnly", model=["3", 0], strength_model=1),
        "5": node("BasicGuider", model=["4", 0], conditioning=["9", 0]),
        "6": node(
            "CLEARTiledSampler",
            guider=["5", 0],
            latent_image=["8", 0],
            bands=2,
            devices="auto",
            text_merge="exact",
            machines="",
        ),
        "7": node("CLEARMultiGPU", model=["1", 0], bands=2),
        "8": node("EmptySD3LatentImage", width=64),
        "9": node("CLIPTextEncode", text="2"),
    }
    found = page.evaluate(
        f"""async (prompt) => {{
            const {{ withBypassed }} = await import('/extensions/{PACK_FOLDER}/bypassed_prompt.mjs')
            return [withBypassed(prompt, ['2']), prompt]
        }}""",
        prompt,
    )
    expected = {key: value for key, value in prompt.items() if key not in ("2", "3")}
    expected["4"] = node("LoraLoaderModelOnly", model=["1", 0], strength_model=1)
    expected["6"] = node("SamplerCustomAdvanced", guider=["5", 0], latent_image=["8", 0])
    assert found == [expected, prompt]
