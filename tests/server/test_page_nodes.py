"""What the pack draws on its nodes, in ComfyUI's own page: both renderers, both themes, mouse and keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, Route, expect

from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import attention_flops
from clear_core.window import Window
from devtools import workflow
from devtools.page import (
    RENDERERS,
    cards,
    change_widgets,
    load,
    open_page,
    open_workflow,
    panel,
    put_multi_gpu,
    set_setting,
    shipped,
    use_renderer,
)
from devtools.pictures import scene


@pytest.fixture
def page(page: Page) -> Iterator[Page]:
    """The page, with default settings; nothing of the pack may complain in it."""
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        # The page itself has things to say when there is no internet.
        ours = "clear" in message.location.get("url", "") + message.text.lower()
        if message.type in ("error", "warning") and ours and "Security Policy" not in message.text:
            complaints.append(message.text)

    def threw(error: Error) -> None:
        # A reload breaks off what the page itself is fetching.
        if "/extensions/" in error.stack or error.message != "Failed to fetch":
            complaints.append(f"{error.message}\n{error.stack}")

    page.on("console", heard)
    page.on("pageerror", threw)
    for name, value in {"Picture": True, "Download": True, "Backend": "auto"}.items():
        set_setting(page, f"ClearAttention.{name}", value)
    yield page
    page.remove_listener("console", heard)
    page.remove_listener("pageerror", threw)
    assert complaints == []


def figures(page: Page) -> dict[str, str]:
    """What stands under each name in the first panel."""
    return page.evaluate(
        """() => {
            const list = [...document.querySelectorAll('.clear-panel dl')].find((list) => list.offsetParent)
            return Object.fromEntries([...(list?.querySelectorAll('dt') ?? [])].map((name) => [
                name.textContent, name.nextElementSibling.textContent,
            ]))
        }"""
    )


def widget(page: Page, kind: str, name: str) -> Any:
    return page.evaluate(
        "([kind, name]) => app.graph.nodes.find((n) => n.type === kind).widgets.find((w) => w.name === name).value",
        [kind, name],
    )


def saved(page: Page, kind: str) -> dict[str, Any]:
    """A node as it would be saved."""
    return page.evaluate("(kind) => app.graph.nodes.find((n) => n.type === kind).serialize()", kind)


def raise_number(page: Page, renderer: str, kind: str, name: str) -> None:
    """As a user does: the arrow to the right of a number."""
    if renderer == "classic":
        x, y = page.evaluate(
            """([kind, name]) => {
                const node = app.graph.nodes.find((n) => n.type === kind)
                const widget = node.widgets.find((w) => w.name === name)
                const box = app.canvas.canvas.getBoundingClientRect()
                const arrow = [node.pos[0] + node.size[0] - 25, node.pos[1] + widget.y + 10]
                const [x, y] = app.canvas.ds.convertOffsetToCanvas(arrow)
                return [box.x + x, box.y + y]
            }""",
            [kind, name],
        )
        page.mouse.click(x, y)
    else:
        row = page.locator(".lg-node-widget").filter(has_text=re.compile(rf"^\s*{name}\s*$")).filter(visible=True)
        increment = row.locator('[data-pc-section="incrementbutton"]')
        (increment if increment.count() else row.locator("button").last).click()  # newer pages do not name it


def expected(radius: int, width: int, height: int, factor: int = 1) -> dict[str, str]:
    """The core's figures, as the panel shows them."""
    grid = Grid(height // 16, width // 16)
    layout = TokenLayout(256, grid)
    cells = -(-grid.height // factor) * -(-grid.width // factor) if factor > 1 else 0
    share = 100 * attention_flops(layout, Window(radius), down_factor=factor) / attention_flops(layout, None)
    cost = f"{share:.1f}" if share < 10 else f"{share:.0f}"
    return {
        "tokens each patch sees": f"{Window(radius).tokens + 256 + cells:,} of {layout.tokens:,}",
        "attention cost": f"{cost} % of full attention" + ("; pays off from 2048 px" if share > 50 else ""),
    }


def wait_for_figures(page: Page, wanted: dict[str, str]) -> None:
    found: dict[str, str] = {}
    for _ in range(1000):
        found = figures(page)
        if wanted.items() <= found.items():
            return
        page.wait_for_timeout(50)
    assert {name: found.get(name) for name in wanted} == wanted


# ---- the window --------------------------------------------------------------------------------------


def test_the_picture_follows_the_radius(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    # Radius 0 is that of the weights, clear_local_16.
    wait_for_figures(page, expected(16, 2048, 2048))
    picture = panel(page).get_by_role("img")
    expect(picture).to_have_accessible_name(re.compile(r"radius 16, 496 pixels across; image: 2048 x 2048 pixels"))
    before = picture.locator(".clear-window").get_attribute("d")
    for radius in (1, 2, 3):
        raise_number(page, renderer, "CLEARApply", "radius")
        wait_for_figures(page, expected(radius, 2048, 2048))
    expect(picture).to_have_accessible_name(re.compile(r"radius 3, 80 pixels across"))
    assert picture.locator(".clear-window").get_attribute("d") != before
    raise_number(page, renderer, "CLEARApply", "down_factor")
    raise_number(page, renderer, "CLEARApply", "down_factor")
    wait_for_figures(page, expected(3, 2048, 2048, factor=2))
    expect(picture).to_have_accessible_name(re.compile(r"Global context: 64 x 64 pooled tokens"))


def test_the_picture_is_to_scale(page: Page, renderer: str) -> None:
    content = shipped("03_prompt_to_2k", "CLEARApply")
    open_workflow(page, content)
    wait_for_figures(page, expected(16, 2048, 2048))
    image, window = (panel(page).locator(f".clear-{name}").bounding_box() for name in ("image", "window"))
    assert image and window
    assert window["width"] / image["width"] == pytest.approx(31 / 128, rel=0.03)
    assert image["width"] == pytest.approx(image["height"], rel=0.03)
    assert window["x"] + window["width"] / 2 == pytest.approx(image["x"] + image["width"] / 2, rel=0.03)


# Size widgets, plain numbers wired into them, an image that is resized and encoded, one node for it all.
SIZES = {
    "03_prompt_to_2k": "2048 x 2048 (graph)",
    "15_fast": "2048 x 2048 (graph)",
    "17_canny": "2048 x 2048 (graph)",
    "07_16k_on_24gb": "16384 x 16384 (graph)",
    "19_chroma": "1536 x 1536 (graph)",
    "04_image_to_image": "1024 x 1024",  # of a file that is not here: chosen, the least at first
}


def shown_size(page: Page) -> str:
    select = panel(page).get_by_label("Image size")
    expect(select).to_be_visible()
    return select.evaluate("(select) => select.selectedOptions[0].textContent")


@pytest.mark.parametrize("name", SIZES)
def test_the_images_size_is_found_in_the_graph(page: Page, name: str) -> None:
    set_setting(page, "Comfy.VueNodes.Enabled", False)
    open_workflow(page, shipped(name, "CLEARApply"))
    assert shown_size(page) == SIZES[name]


def test_a_change_elsewhere_in_the_graph_is_seen(page: Page) -> None:
    set_setting(page, "Comfy.VueNodes.Enabled", False)
    open_workflow(page, shipped("19_chroma", "CLEARApply"))
    wait_for_figures(page, expected(16, 1536, 1536))
    change_widgets(page, {"EmptySD3LatentImage": {"width": 768}})
    expect(panel(page).get_by_label("Image size")).to_contain_text("768 x 1536 (graph)")
    wait_for_figures(page, expected(16, 768, 1536))


def test_inside_a_subgraph_the_size_comes_from_outside(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("19_chroma", "CLEARApply"))
    page.evaluate(
        """async () => {
            const inside = app.graph.nodes.filter((n) => ['CLEARApply', 'ModelSamplingAuraFlow'].includes(n.type))
            const { subgraph } = app.graph.convertToSubgraph(new Set(inside))
            app.canvas.setGraph(subgraph)
            const node = subgraph.nodes.find((n) => n.type === 'CLEARApply')
            app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]]
            app.canvas.setDirty(true, true)
            await new Promise((done) => setTimeout(done, 200))
            app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
        }"""
    )
    wait_for_figures(page, expected(16, 1536, 1536))
    assert shown_size(page) == "1536 x 1536 (graph)"


# A bypassed node and a reroute between the latent and the sampler; two subgraphs around Apply CLEAR Attention, whose
# radius is promoted to the inner subgraph's node.
NESTED = """async () => {
    const of = (type) => app.graph.nodes.find((node) => node.type === type)
    const [empty, sampler] = [of('EmptySD3LatentImage'), of('SamplerCustomAdvanced')]
    const [bypassed, reroute] = ['RepeatLatentBatch', 'Reroute'].map((type) => LiteGraph.createNode(type))
    for (const node of [bypassed, reroute]) app.graph.add(node)
    bypassed.mode = 4
    empty.connect(0, bypassed, 0)
    bypassed.connect(0, reroute, 0)
    reroute.connect(0, sampler, sampler.inputs.findIndex((input) => input.type === 'LATENT'))
    const inner = app.graph.convertToSubgraph(new Set([of('CLEARApply')]))
    const apply = inner.subgraph.nodes.find((node) => node.type === 'CLEARApply')
    inner.subgraph.addInput('radius', 'INT').connect(apply.inputs.find((input) => input.name === 'radius'), apply)
    inner.node.widgets.find((widget) => widget.name === 'radius').value = 5
    const outer = app.graph.convertToSubgraph(new Set([inner.node, of('ModelSamplingAuraFlow')]))
    app.canvas.setGraph(outer.subgraph)
    await new Promise((done) => setTimeout(done, 100))
    app.canvas.setGraph(inner.subgraph)
    app.canvas.ds.offset = [300 - apply.pos[0], 200 - apply.pos[1]]
    app.canvas.setDirty(true, true)
    await new Promise((done) => setTimeout(done, 200))
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
}"""


def test_links_are_followed_through_nested_subgraphs_bypasses_and_reroutes(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("19_chroma", "CLEARApply"))
    page.evaluate(NESTED)
    wait_for_figures(page, expected(5, 1536, 1536))
    assert shown_size(page) == "1536 x 1536 (graph)"


def test_a_chosen_size_stays_with_the_node(page: Page, renderer: str, server: Any) -> None:
    """Chosen with the keyboard alone; saved, reloaded, copied, undone."""
    open_workflow(page, shipped("19_chroma", "CLEARApply"))
    wait_for_figures(page, expected(16, 1536, 1536))
    values = saved(page, "CLEARApply")["widgets_values"]
    select = panel(page).get_by_label("Image size")
    select.focus()
    page.keyboard.type("4096")
    page.keyboard.press("Delete")  # which on the canvas would remove the node
    expect(select).to_have_value("4096")
    wait_for_figures(page, expected(16, 4096, 4096))
    expect(select).to_be_focused()
    node = saved(page, "CLEARApply")
    assert node["properties"]["clear_image"] == 4096
    assert node["widgets_values"] == values
    page.evaluate("() => { const [n] = app.graph.nodes.filter((n) => n.type === 'CLEARApply'); app.canvas.select(n) }")
    twin = page.evaluate(
        """() => {
            app.canvas.copyToClipboard()
            app.canvas.pasteFromClipboard()
            const [, twin] = app.graph.nodes.filter((n) => n.type === 'CLEARApply')
            const kept = twin.serialize()
            app.graph.remove(twin)
            return kept
        }"""
    )
    assert (twin["properties"]["clear_image"], twin["widgets_values"]) == (4096, values)
    reopened = page.evaluate("() => app.graph.serialize()")
    load(page, server.address)
    open_workflow(page, reopened)
    wait_for_figures(page, expected(16, 4096, 4096))
    assert saved(page, "CLEARApply")["widgets_values"] == values


def test_a_workflow_opened_while_the_panels_load_has_only_its_own(page: Page, server: Any) -> None:
    set_setting(page, "Comfy.VueNodes.Enabled", False)
    held: list[Route] = []

    def hold(request: Route) -> None:
        held.append(request)

    page.route("**/panels.mjs", hold)
    load(page, server.address)
    for _ in range(2):  # the same twice: the renderer goes by the id whether a node's widgets are in view
        open_workflow(page, shipped("19_chroma", "CLEARApply"))
    while not held:
        page.wait_for_timeout(20)
    for request in held:
        request.continue_()
    page.unroute("**/panels.mjs", hold)
    wait_for_figures(page, expected(16, 1536, 1536))
    expect(page.locator(".clear-panel")).to_have_count(1)


def test_undo_takes_the_choice_back(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("19_chroma", "CLEARApply"))
    wait_for_figures(page, expected(16, 1536, 1536))
    panel(page).get_by_label("Image size").select_option("8192")
    wait_for_figures(page, expected(16, 8192, 8192))
    # What arrives later makes the node taller, and a click makes the page look for changes.
    page.evaluate(
        """() => app.api.dispatchCustomEvent('progress_text', {
            nodeId: app.graph.nodes.find((node) => node.type === 'CLEARApply').id, text: 'one\\ntwo\\nthree',
        })"""
    )
    expect(panel(page).get_by_text("three")).to_be_visible()
    page.mouse.click(1300, 900)
    page.keyboard.press("Control+z")
    wait_for_figures(page, expected(16, 1536, 1536))
    assert saved(page, "CLEARApply")["widgets_values"][0] == 16


def search(page: Page, words: str) -> Locator:
    """What the search finds, which a double click on the canvas opens too."""
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.locator("input[role=combobox]").filter(visible=True).last.fill(words)
    return page.get_by_role("option").filter(visible=True)


def add_found(page: Page, words: str, name: str, kind: str) -> None:
    search(page, words).filter(has_text=name).first.click()
    page.wait_for_function("(kind) => app.graph.nodes[0]?.type === kind", arg=kind)
    # On newer pages the node follows the pointer until a click, which counts only once Nodes 2.0 has drawn the node.
    page.evaluate("() => app.canvas.finalizeGhostPlacement?.(false)")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Load CLEAR Weights", "CLEARWeightsLoader"),
        ("Apply CLEAR Attention", "CLEARApply"),
        ("CLEAR Multi-GPU", "CLEARMultiGPU"),
        ("CLEAR Tiled Multi-GPU Sampler", "CLEARTiledSampler"),
    ],
)
def test_a_node_found_by_search_has_its_picture(page: Page, renderer: str, name: str, kind: str) -> None:
    page.evaluate("() => { app.graph.clear(); app.canvas.ds.offset = [0, 0]; app.canvas.ds.scale = 1 }")
    add_found(page, name, name, kind)
    expect(panel(page)).to_be_visible()
    assert saved(page, kind)["size"][1] >= panel(page).evaluate("(e) => e.offsetHeight")


def test_the_search_does_not_find_parts_of_other_nodes(page: Page) -> None:
    use_renderer(page, "classic")
    options = search(page, "clear")
    expect(options.filter(has_text="Apply CLEAR Attention")).to_have_count(1)
    assert not [text for text in options.all_inner_texts() if re.search("CLEAR (Item|Stages)", text)]
    page.keyboard.press("Escape")


@pytest.mark.parametrize("name", ["06_8k_on_16gb", "07_16k_on_24gb", "08_multi_gpu_8k"])
def test_a_source_image_too_small_or_of_another_shape_is_named(page: Page, client: Any, name: str) -> None:
    use_renderer(page, "classic")
    client.upload_picture("source.png", scene(1500, 1000))
    client.upload_picture("square.png", scene(1024, 1024))
    open_workflow(page, shipped(name, "CLEARApply"))
    change_widgets(page, {"LoadImage": {"image": "source.png"}})
    side = 16384 if "16k" in name else 8192
    note = panel(page).locator(".clear-warning")
    expect(note).to_have_text(
        f"The source image, 1500 x 1000, is enlarged {side / 1000:.1f} times at once; more than 2 blurs it. "
        f"Start from {side // 2} x {side // 2}. "
        "33 % of the source image is cropped: the result has another aspect ratio."
    )
    change_widgets(page, {"ImageScale": {"crop": "disabled"}})
    expect(note).to_contain_text("The source image is stretched")
    change_widgets(page, {"LoadImage": {"image": "square.png"}, "ImageScale": {"width": 2048, "height": 2048}})
    expect(note).to_be_hidden()


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        ("4k", "CLEAR 4K / 8K", "CLEARPreset"),
        ("upscale", "CLEAR High-Res Upscale", "CLEARHighRes"),
        ("hires fix", "CLEAR High-Res Upscale", "CLEARHighRes"),
    ],
)
def test_the_search_knows_what_users_call_it(page: Page, renderer: str, words: str, name: str, kind: str) -> None:
    """By its aliases, or by the name in the search alone on a page that knows none: the node is called as ever."""
    page.evaluate("() => { app.graph.clear(); app.canvas.ds.offset = [0, 0]; app.canvas.ds.scale = 1 }")
    add_found(page, words, name, kind)
    assert page.evaluate("() => app.graph.nodes[0].title") == name


def test_aliases_of_the_server_leave_the_names_alone(browser: Browser, server: Any) -> None:
    def with_aliases(route: Route) -> None:
        found = route.fetch().json()
        found["CLEARHighRes"]["search_aliases"] = ["ultimate sd upscale", "hires fix"]
        route.fulfill(json=found)

    page = browser.new_page()
    page.route(re.compile("/object_info$"), with_aliases)
    load(page, server.address)
    found = search(page, "High-Res").filter(has_text="CLEAR High-Res Upscale")
    expect(found).to_have_count(1)
    expect(found).not_to_contain_text("(hires fix)")
    major, minor = map(int, page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__").split(".")[:2])
    if (major, minor) > (1, 32):
        page.keyboard.press("Escape")
        expect(search(page, "ultimate").filter(has_text="CLEAR High-Res Upscale")).to_have_count(1)
    page.close()


@pytest.mark.parametrize("kind", ["CLEARReport", "CLEARAttentionMap", "CLEARFactors"])
def test_a_node_with_a_picture_is_made_wide(page: Page, kind: str) -> None:
    use_renderer(page, "classic")  # the other changes sizes of its own accord
    page.evaluate("(kind) => { app.graph.clear(); app.graph.add(LiteGraph.createNode(kind)) }", kind)
    assert saved(page, kind)["size"][0] >= 560
    node = {**saved(page, kind), "size": [400, 500]}
    open_workflow(page, {"nodes": [node], "links": [], "version": 0.4})
    assert saved(page, kind)["size"][0] == 400  # the user's own


def test_a_window_larger_than_the_image_is_drawn_within_it(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("19_chroma", "CLEARApply"))
    change_widgets(page, {"EmptySD3LatentImage": {"width": 256, "height": 128}, "CLEARApply": {"radius": 128}})
    tokens = 256 + 8 * 16
    wait_for_figures(page, {"tokens each patch sees": f"{tokens} of {tokens}"})
    image, window = (panel(page).locator(f".clear-{name}").bounding_box() for name in ("image", "window"))
    assert image
    assert window == pytest.approx(image, abs=1)


def test_memory_beyond_what_is_free_is_marked(page: Page, renderer: str, two_cards: None) -> None:
    content = shipped("06_8k_on_16gb", "CLEARTiledSampler")
    next(n for n in content["nodes"] if n["type"] == "CLEARTiledSampler")["widgets_values"][:2] = ["cuda:0", 64]
    open_workflow(page, content)
    marked = panel(page).locator(".clear-too-much")
    expect(panel(page).get_by_role("checkbox", name="cuda:0")).to_contain_text("for a step, 20 GiB of 24 GiB free")
    expect(marked).to_have_count(0)
    change_widgets(page, {"CLEARTiledSampler": {"bands": 1}})
    expect(marked).to_have_attribute("data-device", "cuda:0")


def test_what_cannot_be_shown_says_why(page: Page, renderer: str) -> None:
    content = shipped("19_chroma", "CLEARApply")
    next(node for node in content["nodes"] if node["type"] == "CLEARApply")["widgets_values"][0] = 0
    open_workflow(page, content)
    expect(panel(page).get_by_role("status")).to_contain_text("no weights are connected. Connect Load CLEAR Weights")
    raise_number(page, renderer, "CLEARApply", "radius")
    wait_for_figures(page, expected(1, 1536, 1536))


# ---- bands and devices -------------------------------------------------------------------------------


def boxes(page: Page) -> dict[str, bool]:
    """The devices on offer and whether they are ticked."""
    return page.evaluate(
        "() => Object.fromEntries([...document.querySelectorAll('.clear-devices button')].map((box) => "
        "[box.dataset.device, box.ariaChecked === 'true']))"
    )


@pytest.fixture
def two_cards(page: Page, nodes_api: Any) -> Iterator[None]:
    with cards(page, nodes_api, 2):
        yield


@pytest.mark.usefixtures("two_cards")
def test_ticked_devices_are_written_into_the_widget(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("06_8k_on_16gb", "CLEARTiledSampler"))
    devices = panel(page).get_by_role("group", name="Devices")
    expect(devices.get_by_role("checkbox", name="auto")).to_be_checked()
    assert boxes(page) == {"auto": True, "cuda:0": False, "cuda:1": False, "cpu": False}
    expect(devices).to_contain_text("Card 1")
    expect(devices).to_contain_text(re.compile(r"cuda:1\d\.\d GiB for a step, 20 GiB of 24 GiB free, Card 1"))
    second = devices.get_by_role("checkbox", name="cuda:1")
    second.focus()
    page.keyboard.press("Space")
    expect(second).to_be_focused()
    assert widget(page, "CLEARTiledSampler", "devices") == "cuda:1"
    assert boxes(page) == {"auto": False, "cuda:0": False, "cuda:1": True, "cpu": False}
    devices.get_by_role("checkbox", name="cuda:0").click()
    assert widget(page, "CLEARTiledSampler", "devices") == "cuda:0,cuda:1"
    assert saved(page, "CLEARTiledSampler")["widgets_values"] == ["cuda:0,cuda:1", 64, "exact", ""]
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "CLEARTiledSampler")
    assert sampler["inputs"]["devices"] == "cuda:0,cuda:1"
    assert not {"clear_picture", "clear"} & sampler["inputs"].keys()
    page.keyboard.press("Control+z")
    expect(devices.get_by_role("checkbox", name="cuda:0")).not_to_be_checked()
    assert widget(page, "CLEARTiledSampler", "devices") == "cuda:1"
    devices.get_by_role("checkbox", name="auto").click()
    assert widget(page, "CLEARTiledSampler", "devices") == "auto"


@pytest.mark.usefixtures("two_cards")
def test_shares_and_absent_devices_are_kept(page: Page, renderer: str) -> None:
    content = shipped("06_8k_on_16gb", "CLEARTiledSampler")
    next(n for n in content["nodes"] if n["type"] == "CLEARTiledSampler")["widgets_values"][0] = "cuda=3, xpu:4"
    open_workflow(page, content)
    devices = panel(page).get_by_role("group", name="Devices")
    expect(devices.get_by_role("checkbox", name="xpu:4")).to_be_checked()
    expect(devices).to_contain_text("not in this machine")
    assert boxes(page) == {"auto": False, "cuda:0": True, "cuda:1": False, "cpu": False, "xpu:4": True}
    devices.get_by_role("checkbox", name="cuda:1").click()
    assert widget(page, "CLEARTiledSampler", "devices") == "cuda=3,cuda:1,xpu:4"
    devices.get_by_role("checkbox", name="xpu:4").click()
    assert widget(page, "CLEARTiledSampler", "devices") == "cuda=3,cuda:1"


def test_bands_are_drawn_as_the_core_cuts_them(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("08_multi_gpu_8k"))
    open_workflow(page, shipped("06_8k_on_16gb", "CLEARTiledSampler"))
    picture = panel(page).get_by_role("img")
    expect(picture).to_have_accessible_name("64 bands over an image of 512 x 512 tokens.")
    assert picture.locator("g").count() == 64
    assert figures(page) == {
        "bands": "64",
        "rows per band": "8 of 512",
        "rows shared with neighbours": "15 on either side",
    }
    raise_number(page, renderer, "CLEARTiledSampler", "bands")
    expect(picture).to_have_accessible_name("65 bands over an image of 512 x 512 tokens.")
    assert figures(page)["rows per band"] == "7 to 8 of 512"


def test_multi_gpu_finds_size_and_window_around_it(page: Page, renderer: str) -> None:
    name, kind = "08_multi_gpu_8k", "CLEARMultiGPU"
    content = shipped(name)
    if not any(node["type"] == kind for node in content["nodes"]):
        kind = "CLEARTiledSampler"
    open_workflow(page, shipped(name, kind))
    expect(panel(page).get_by_role("img")).to_have_accessible_name(re.compile(r"over an image of 512 x 512 tokens"))
    assert figures(page)["rows shared with neighbours"] == "15 on either side"


def test_without_clear_before_it_the_bands_say_so(page: Page, renderer: str) -> None:
    page.evaluate(
        """() => {
            app.graph.clear()
            const node = LiteGraph.createNode('CLEARMultiGPU')
            node.pos = [0, 0]
            app.graph.add(node)
            app.canvas.ds.offset = [300, 200]
            app.canvas.ds.scale = 1
        }"""
    )
    expect(panel(page).get_by_role("status")).to_have_text("Connect Apply CLEAR Attention before this node.")


def test_each_band_shows_how_far_it_is(page: Page, renderer: str, client: Any) -> None:
    """A real run on the demo checkpoint, queued by the page."""
    seed = 40 + RENDERERS.index(renderer)  # what has run already does not run again
    changes = {**workflow.DEMO.changes(), **workflow.sampling(width=96, height=256, steps=2, seed=seed)}
    open_workflow(page, workflow.page_form("03_prompt_to_2k"))
    change_widgets(page, changes)
    put_multi_gpu(page)
    change_widgets(page, {"CLEARMultiGPU": {"devices": "cpu,cpu", "bands": 4}})
    page.evaluate(
        """() => {
            window.seen = []
            window.watch = setInterval(() => {
                const bar = document.querySelector('.clear-panel:has(.clear-devices) progress')
                if (!bar) return
                const parts = [...document.querySelectorAll('.clear-done')]
                seen.push([bar.value, parts.map((part) => Number(part.getAttribute('width')))])
            }, 20)
        }"""
    )
    cut = page.locator(".clear-panel").filter(has=page.get_by_role("group", name="Devices"))
    expect(cut.locator("dl")).to_contain_text("4 of 16")
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function("() => window.seen.length > 0", timeout=120_000)
    page.wait_for_function(
        "() => !document.querySelector('.clear-panel:has(.clear-devices) progress')", timeout=120_000
    )
    page.evaluate("() => clearInterval(window.watch)")
    seen = page.evaluate("() => window.seen")
    assert all(len(widths) == 4 and 0 <= value <= 100 for value, widths in seen)
    assert any(any(widths) for _, widths in seen)
    # After it the picture is the plan again.
    expect(cut.locator("dl")).to_contain_text("4 of 16")


# ---- the weights, settings, themes -------------------------------------------------------------------


def test_the_weights_file_is_here_or_not(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARWeightsLoader"))
    shown = panel(page)
    expect(shown).to_contain_text("missing: 3.6 GB to download when it runs")
    expect(shown).to_contain_text("radius 16, no global context")
    link = shown.get_by_role("link", name="FLUX.1 [dev] non-commercial licence")
    expect(link).to_have_attribute("href", "https://huggingface.co/Huage001/CLEAR")
    change_widgets(page, {"CLEARWeightsLoader": {"weights_name": workflow.DEMO.clear}})
    expect(shown).to_contain_text(re.compile(r"found, 1\d\d MB"))
    expect(link).to_have_count(0)


def test_settings_are_for_new_nodes(page: Page, renderer: str, nodes_api: Any) -> None:
    backends = page.evaluate("() => app.extensionManager.setting.settings['ClearAttention.Backend'].options")
    assert backends == list(nodes_api.module("clear_core.backends").backend_names())
    set_setting(page, "ClearAttention.Backend", "sdpa")
    set_setting(page, "ClearAttention.Download", False)
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    assert widget(page, "CLEARApply", "backend") == "auto"
    assert widget(page, "CLEARWeightsLoader", "download") == "when missing"
    page.evaluate(
        """() => {
            app.graph.clear()
            // Newer pages keep values by the ids of graph and node, and an emptied graph counts both anew: a node of an
            // earlier test would lend this one its values, of any pack's node type.
            app.graph.id = crypto.randomUUID()
            for (const type of ['CLEARApply', 'CLEARWeightsLoader']) app.graph.add(LiteGraph.createNode(type))
        }"""
    )
    assert widget(page, "CLEARApply", "backend") == "sdpa"
    assert widget(page, "CLEARWeightsLoader", "download") == "never"


def test_pictures_can_be_switched_off_and_on(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    expect(panel(page).locator(".clear-estimate")).to_contain_text("download")  # the last to come, and to grow by
    values, size = saved(page, "CLEARApply")["widgets_values"], saved(page, "CLEARApply")["size"]
    set_setting(page, "ClearAttention.Picture", False)
    expect(page.locator(".clear-panel")).to_have_count(0)
    page.wait_for_function(  # Nodes 2.0 measures the node after it has drawn it
        "(height) => app.graph.nodes.find((node) => node.type === 'CLEARApply').size[1] < height", arg=size[1]
    )
    set_setting(page, "ClearAttention.Picture", True)
    wait_for_figures(page, expected(16, 2048, 2048))
    assert saved(page, "CLEARApply")["widgets_values"] == values


def test_the_renderer_can_be_changed_at_any_time(page: Page) -> None:
    set_setting(page, "Comfy.VueNodes.Enabled", False)
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    for enabled in (True, False):
        wait_for_figures(page, expected(16, 2048, 2048))
        set_setting(page, "Comfy.VueNodes.Enabled", enabled)
    wait_for_figures(page, expected(16, 2048, 2048))


def test_a_page_without_clear_nodes_is_left_alone(browser: Browser, server: Any) -> None:
    page = open_page(browser, server.address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("() => app.graph.clear()")
    page.evaluate("() => app.graph.add(LiteGraph.createNode('KSampler'))")
    page.wait_for_timeout(500)
    assert not [url for url in asked if "clear" in url]
    # Nor does its start bring more than the one small script that sees nodes come.
    load(page, server.address)
    page.wait_for_timeout(500)
    assert {url.rpartition("/")[2] for url in asked if "clear" in url} == {"clear.js"}
    assert page.locator(".clear-panel").count() == 0
    page.close()


CONTRAST = """([ground, colour]) => {
    const canvas = document.createElement('canvas').getContext('2d')
    const luminance = (...colours) => {
        for (const style of colours) {
            canvas.fillStyle = style
            canvas.fillRect(0, 0, 1, 1)
        }
        const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
        const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) + 0.05
    }
    const [under, over] = [luminance(ground), luminance(ground, colour)]
    return { ratio: Math.max(under, over) / Math.min(under, over), light: under > 0.45 }
}"""


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_can_be_read_in_either_theme(page: Page, renderer: str, theme: str) -> None:
    set_setting(page, "Comfy.ColorPalette", theme)
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    wait_for_figures(page, expected(16, 2048, 2048))
    try:
        ground = panel(page).evaluate("(e) => getComputedStyle(e).backgroundColor")
        for part in ("dt", "dd", "b"):
            colour = panel(page).locator(part).first.evaluate("(e) => getComputedStyle(e).color")
            seen = page.evaluate(CONTRAST, [ground, colour])
            assert seen["light"] == (theme == "light")
            assert seen["ratio"] >= 4.5, (part, colour)
    finally:
        set_setting(page, "Comfy.ColorPalette", "dark")


def test_the_wheel_on_a_picture_zooms_the_canvas(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    wait_for_figures(page, expected(16, 2048, 2048))
    panel(page).get_by_role("img").hover()
    page.mouse.wheel(0, -300)
    page.wait_for_function("() => app.canvas.ds.scale > 1.05")


def test_the_middle_button_on_a_picture_moves_the_canvas(page: Page, renderer: str) -> None:
    open_workflow(page, shipped("03_prompt_to_2k", "CLEARApply"))
    wait_for_figures(page, expected(16, 2048, 2048))
    before = page.evaluate("() => app.canvas.ds.offset[0]")
    panel(page).get_by_role("img").hover()
    page.mouse.down(button="middle")
    page.mouse.move(900, 500, steps=5)
    page.mouse.up(button="middle")
    page.wait_for_function("(x) => app.canvas.ds.offset[0] > x + 50", arg=before)
