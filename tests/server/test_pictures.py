"""The pictures of the help pages and of the template browser: there, small, and shown by the page.

CLEAR_WRITE_PICTURES=1 python dev.py test tests/server/test_pictures.py   takes them anew; with names of nodes and
workflows (CLEAR_WRITE_PICTURES=CLEARApply,09_lora) only theirs. Those of workflows get what the small FLUX generates.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import Page, expect

from devtools import gallery, pictures, workflow
from devtools.own_base import OwnBase
from devtools.page import RENDERERS, cards, set_setting
from devtools.server import PACK_FOLDER

NODE_FILES = [
    pictures.node_file(kind, renderer, theme)
    for kind in pictures.NODES
    for renderer in RENDERERS
    for theme in pictures.THEMES
]
WORKFLOW_FILES = [pictures.workflow_file(name) for name in workflow.NAMES]


@pytest.fixture(scope="module", autouse=True)
def written(
    page: Page,
    client: Any,
    nodes_api: Any,
    demo_prompt: Callable[..., Any],
    base: OwnBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The pictures, taken anew where that is asked for."""
    asked = os.environ.get("CLEAR_WRITE_PICTURES", "")
    if not asked:
        return
    names = {*workflow.NAMES, *pictures.NODES} if asked == "1" else set(asked.split(","))
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    for over_it in ("CanvasInfo", "CanvasMenu"):
        set_setting(page, f"Comfy.Graph.{over_it}", False)
    client.upload_picture("example.png", pictures.scene())
    with cards(page, nodes_api, 2):
        for name in names.intersection(workflow.NAMES):
            pictures.take_workflow(page, name)
        page.set_viewport_size({"width": 1600, "height": 1500})
        for kind in names.intersection(pictures.PLACED):
            pictures.place(page, kind)
            pictures.take_node(page, kind)
    shown = shown_nodes(client, demo_prompt)
    for kind in names.intersection(shown):
        prompt, size = shown[kind]
        pictures.run(page, kind, prompt, size)
        pictures.take_node(page, kind)
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    if run := names.intersection(gallery.CASES):
        folder = tmp_path_factory.mktemp("small_flux")
        with gallery.served(folder, base=base.path, options=base.options) as small:
            gallery.write(small, run, pictures.WORKFLOWS)


def put_folders(client: Any) -> tuple[str, str]:
    """Two folders of three images each, below the server's output folder."""
    folders = "with full attention", "with CLEAR"
    prompt: dict[str, Any] = {}
    for number in range(3):
        scene = pictures.scene().rotate(90 * number)
        for folder, image in zip(folders, (scene, scene.filter(ImageFilter.GaussianBlur(1 + number))), strict=True):
            name = client.upload_picture(f"{number} {folder}.png", image)
            key = f"{number} {folder}"
            prompt[key] = {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": {"title": "Load"}}
            inputs = {"images": [key, 0], "filename_prefix": f"{folder}/scene {number}"}
            prompt[f"save {key}"] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": "Save"}}
    client.run(prompt)
    return folders


def shown_nodes(client: Any, demo_prompt: Callable[..., Any]) -> dict[str, tuple[Any, tuple[int, int]]]:
    """For each node that shows what it made: a prompt of its own, and the node's size."""
    scene = pictures.scene()
    names = [
        client.upload_picture("scene.png", scene),
        client.upload_picture("soft.png", scene.filter(ImageFilter.GaussianBlur(3))),
    ]
    prompt = demo_prompt({"CLEARApply": {"radius": 8}}, width=768, height=768)
    loaders = "UNETLoader CLEARWeightsLoader DualCLIPLoader VAELoader CLEARApply Prompt FluxGuidance"
    kept = [workflow.node_id(prompt, name) for name in loaders.split()]
    info = client.object_info()
    nodes = {key: prompt[key] for key in kept}
    flux, *_, vae, apply, _, guidance = kept

    def made(kind: str, **inputs: Any) -> Any:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": info[kind]["display_name"]}}

    image = made("LoadImage", image=names[0])
    latent = made("VAEEncode", pixels=["image", 0], vae=[vae, 0])
    report = made("CLEARReport", model=[apply, 0], width=2048, height=2048)
    looked = made(
        "CLEARAttentionMap",
        model=[apply, 0],
        positive=[guidance, 0],
        latent_image=["latent", 0],
        seed=3,
        percent=0.5,
        block="s0",
        head=0,
        x=0.4,
        y=0.6,
    )
    factors = made(
        "CLEARFactors",
        model=[flux, 0],
        positive=[guidance, 0],
        latent_image=["latent", 0],
        seed=3,
        percents="0.5",
        least_mass=0.9,
        largest_error=0.1,
        radius=0,
        blocks="all",
        queries=256,
    )
    compared = made("CLEARCompare", image_a=["image", 0], image_b=["soft", 0], gain=4.0)
    original, folder = put_folders(client)
    evaluated = made(
        "CLEAREvaluate",
        original=original,
        folders=folder,
        prompts="",
        metrics="PSNR, SSIM, MS-SSIM",
        download=False,
        save_as="",
    )
    return {
        "CLEARReport": (nodes | {"report": report}, (760, 960)),
        "CLEARAttentionMap": (nodes | {"image": image, "latent": latent, "map": looked}, (760, 960)),
        "CLEARFactors": (nodes | {"image": image, "latent": latent, "factors": factors}, (760, 960)),
        "CLEARCompare": (
            {"image": image, "soft": made("LoadImage", image=names[1]), "compare": compared},
            (420, 120),
        ),
        "CLEAREvaluate": ({"evaluate": evaluated}, (420, 420)),
    }


def test_every_picture_is_there_and_small(subtests: pytest.Subtests) -> None:
    for path in (*NODE_FILES, *WORKFLOW_FILES):
        with subtests.test(path=path.name), Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 50
            assert path.stat().st_size < 300_000


def test_no_picture_is_left_over() -> None:
    kept = {*NODE_FILES, *WORKFLOW_FILES}
    found = {path for folder in (pictures.DOCS, pictures.WORKFLOWS) for path in folder.iterdir()}
    assert {path for path in found if path.suffix in (".png", ".jpg")} == kept


def test_the_help_pages_show_their_nodes(page: Page, subtests: pytest.Subtests) -> None:
    for kind in pictures.NODES:
        with subtests.test(kind=kind):
            check_help_page(page, kind)


def check_help_page(page: Page, kind: str) -> None:
    """Opened as a user does: the info button over a selected node."""
    page.evaluate(
        """(kind) => {
            app.graph.clear()
            app.graph.add(LiteGraph.createNode(kind))
        }""",
        kind,
    )
    pictures.look_at(page, kind)
    page.wait_for_timeout(100)
    box = page.evaluate(pictures.BOUNDS, kind)
    page.mouse.click(box["x"] + 90, box["y"] + 15)
    page.get_by_test_id("info-button").click()
    picture = page.locator(f'.node-help-content img[src*="{kind}.png"]')
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("(image) => image.naturalWidth") > 50
    assert picture.get_attribute("alt")


def test_the_walk_through_shows_every_workflow() -> None:
    text = (pictures.WORKFLOWS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)\.jpg\)", text)) == set(workflow.NAMES)
    assert set(re.findall(r"\]\((\w+)\.json\)", text)) == set(workflow.NAMES)


def test_the_template_browser_has_its_pictures(client: Any, subtests: pytest.Subtests) -> None:
    for name in workflow.NAMES:
        with subtests.test(name=name):
            served = client.get(f"/api/workflow_templates/{PACK_FOLDER}/{name}.jpg")
            assert served == pictures.workflow_file(name).read_bytes()
