"""Pictures for the help pages and for the template browser, taken in ComfyUI's own page.

CLEAR_WRITE_PICTURES=1 python dev.py test tests/server/test_pictures.py
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import Page

from . import workflow
from .gallery_inset import QUALITY
from .page import RENDERERS, open_workflow, put_after, set_setting, shipped, use_renderer

THEMES = ("dark", "light")
PLACED: dict[str, tuple[str, tuple[str, str] | None]] = {
    "CLEARPreset": ("01_prompt_to_4k", None),
    "CLEARWeightsLoader": ("03_prompt_to_2k", None),
    "CLEARApply": ("03_prompt_to_2k", None),
    "CLEARMultiGPU": ("03_prompt_to_2k", ("CLEARApply", "model")),
    "CLEARTiledSampler": ("06_8k_on_16gb", None),
    "CLEARHighRes": ("02_image_to_4k", None),
    "CLEARControlNet": ("11_controlnet", ("ControlNetLoader", "control_net")),
    "CLEARVAEEncode": ("06_8k_on_16gb", None),
    "CLEARVAEDecode": ("06_8k_on_16gb", None),
    "CLEARSaveLarge": ("06_8k_on_16gb", None),
    "CLEARLoadLarge": ("06_8k_on_16gb", None),
    "CLEARTrainingSet": ("21_distill_weights", None),
    "CLEARDistill": ("21_distill_weights", None),
    "CLEARSweep": ("24_sweep", None),
}
"""By node: a shipped workflow, and, where the node is not in it, after which other it goes and by which input; None too
for one that stands on its own."""

SHOWN = ("CLEARReport", "CLEARAttentionMap", "CLEARFactors", "CLEARCompare", "CLEAREvaluate")
"""Nodes whose picture is what they made: they run first."""

NODES = (*PLACED, *SHOWN)
WORKFLOWS = workflow.ROOT / "workflows"
DOCS = workflow.ROOT / "web" / "docs"

_MARGIN = 16  # pixels around a node
_BADGE = 16  # above it: the name of the pack

BOUNDS = """(kind) => {
    const node = app.graph.nodes.find((node) => node.type === kind)
    const [x, y, width, height] = node.boundingRect
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y])
    const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
    if (shown?.width) return { x: shown.x, y: shown.y, width: shown.width, height: shown.height }
    const box = app.canvas.canvas.getBoundingClientRect()
    return { x: box.x + left, y: box.y + top, width, height }
}"""
_ADD = """(kind) => {
    const node = LiteGraph.createNode(kind)
    node.pos = [0, 0]
    app.graph.add(node)
    const image = node.widgets.find((widget) => widget.name === 'image')
    image.value = 'example.png'
    image.callback(image.value)
}"""
# To what its inputs need; a panel takes all the height that there is.
_SHRINK = """(kind) => {
    const node = app.graph.nodes.find((node) => node.type === kind)
    if (node.widgets.some((widget) => widget.name === 'clear_picture')) return
    if (!node.imgs) node.setSize([node.size[0], node.computeSize()[1]])
}"""
_SCALE = 0.62  # below, the page leaves words out
_FIT = """(scale) => {
    const nodes = app.graph.nodes
    const left = Math.min(...nodes.map((node) => node.pos[0])) - 30
    const top = Math.min(...nodes.map((node) => node.pos[1])) - 100
    const right = Math.max(...nodes.map((node) => node.pos[0] + node.size[0])) + 30
    const bottom = Math.max(...nodes.map((node) => node.pos[1] + node.size[1])) + 30
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [-left, -top]
    app.canvas.setDirty(true, true)
    return { width: Math.ceil((right - left) * scale), height: Math.ceil((bottom - top) * scale) }
}"""
# The one thing of the page that lies over the graph when it is alone.
_GRAPH_ALONE = ".comfy-menu-hamburger { display: none !important }"


def node_file(kind: str, renderer: str, theme: str) -> Path:
    """The first renderer and theme are those of the help page."""
    more = [] if renderer == RENDERERS[0] else [renderer.replace(" ", "").replace(".", "")]
    more += [] if theme == THEMES[0] else [theme]
    return DOCS / ".".join([kind, *more, "png"])


def workflow_file(name: str) -> Path:
    """Where the template browser looks for it."""
    return WORKFLOWS / f"{name}.jpg"


def scene(width: int = 640, height: int = 640) -> Image.Image:
    """Something to look at: hills, a lake, a sun."""
    picture = Image.linear_gradient("L").resize((width, height))
    channels = [picture.point([base + value // 4 for value in range(256)]) for base in (120, 150, 190)]
    picture = Image.merge("RGB", channels)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.62, height * 0.12, width * 0.76, height * 0.26), fill=(255, 236, 190))
    for i, colour in enumerate([(96, 116, 150), (70, 98, 110), (48, 80, 66)]):
        top = height * (0.42 + 0.12 * i)
        peaks = [(width * x / 8, top + height * 0.09 * ((x * (5 + 2 * i)) % 4 - 1.5)) for x in range(9)]
        draw.polygon([(0, height), *peaks, (width, height)], fill=colour)
    draw.ellipse((width * 0.1, height * 0.78, width * 0.8, height * 0.97), fill=(110, 150, 180))
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def look_at(page: Page, kind: str) -> None:
    page.evaluate(
        """(kind) => {
            const node = app.graph.nodes.find((node) => node.type === kind)
            app.canvas.deselectAll()
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [600 - node.pos[0], 250 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }""",
        kind,
    )


def take_node(page: Page, kind: str) -> None:
    """One picture in each renderer and theme, of a node that is in the page's graph by itself."""
    for renderer in RENDERERS:
        use_renderer(page, renderer)
        for theme in THEMES:
            set_setting(page, "Comfy.ColorPalette", theme)
            look_at(page, kind)
            page.mouse.move(5, 500)
            page.wait_for_timeout(1200)  # pictures and fonts come one after another
            box = page.evaluate(BOUNDS, kind)
            above = _MARGIN + (_BADGE if renderer == RENDERERS[0] else 0)
            x, y = box["x"] - _MARGIN, box["y"] - above
            width, height = box["width"] + 2 * _MARGIN, box["height"] + above + _MARGIN
            shot = page.screenshot(clip={"x": x, "y": y, "width": width, "height": height})
            save_small(shot, node_file(kind, renderer, theme))
    use_renderer(page, RENDERERS[0])
    set_setting(page, "Comfy.ColorPalette", THEMES[0])


def take_workflow(page: Page, name: str) -> None:
    open_workflow(page, workflow.page_form(name))
    page.set_viewport_size(page.evaluate(_FIT, _SCALE))
    page.evaluate(_FIT, _SCALE)
    page.mouse.move(5, 500)
    page.wait_for_timeout(1500)
    data = page.screenshot(style=_GRAPH_ALONE)
    Image.open(io.BytesIO(data)).convert("RGB").save(workflow_file(name), quality=QUALITY, optimize=True)


def save_small(data: bytes, path: Path) -> None:
    """As a PNG of 256 colours: a node has few."""
    Image.open(io.BytesIO(data)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def place(page: Page, kind: str) -> None:
    """Open a shipped workflow with the node in it, the node to itself."""
    name, before = PLACED[kind]
    content = shipped(name, kind)
    open_workflow(page, content)
    if before:
        put_after(page, before[0], kind, before[1], (0, 0))
    elif not any(node["type"] == kind for node in content["nodes"]):
        page.evaluate(_ADD, kind)
    page.evaluate(_SHRINK, kind)


def run(page: Page, kind: str, prompt: Any, size: tuple[int, int]) -> None:
    """Open a prompt, run it, and have the node to itself, in that size, with what it made."""
    page.evaluate("(prompt) => app.loadApiJson(prompt, 'picture')", prompt)
    page.evaluate(
        """([kind, size]) => {
            for (const node of app.graph.nodes) {
                if (node.type === kind) {
                    node.pos = [0, 0]
                    node.setSize(size)
                } else {
                    node.pos = [node.pos[0] + 6000, node.pos[1]]
                }
            }
        }""",
        [kind, size],
    )
    look_at(page, kind)
    page.evaluate("() => app.queuePrompt(0)")
    # Its pictures, where it makes some, come with its text.
    ready = """(kind) => {
        const node = app.graph.nodes.find((node) => node.type === kind)
        const made = app.nodeOutputs[node.id]
        return made?.text && (made.images ?? []).length === (node.imgs ?? []).length
    }"""
    page.wait_for_function(ready, arg=kind, timeout=180_000)
