"""The pictures of the shipped workflows: which show what the small FLUX generated, and that they say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devtools import gallery, gallery_inset, workflow
from devtools.small_flux import scenes

PICTURES = workflow.ROOT / "workflows"


@pytest.mark.parametrize("name", workflow.NAMES)
def test_what_the_small_model_generated_is_marked(name: str) -> None:
    path = PICTURES / f"{name}.jpg"
    box = gallery_inset.marked(path)
    assert (box is not None) == (name in gallery.CASES)
    if box is None:
        return
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    left, top, right, bottom = box
    assert 0 <= left < right <= picture.width
    assert 0 <= top < bottom <= picture.height
    assert bottom - top < picture.height / 2
    shown = np.asarray(picture.crop(box)).astype(float)
    assert shown.reshape(-1, 3).std(0).max() > 20
    # A scene has a sky above the ground.
    sky, ground = shown[: len(shown) // 4].mean((0, 1)), shown[len(shown) // 2 : -30].mean((0, 1))
    assert np.abs(sky - ground).max() > 10


@pytest.mark.parametrize("name", gallery.CASES)
def test_a_case_changes_what_its_workflow_has(name: str) -> None:
    prompt = gallery.prompt_of(name)
    shipped = workflow.server_form(name)
    assert {key: node["class_type"] for key, node in prompt.items()} == {
        key: node["class_type"] for key, node in shipped.items()
    }
    links = [
        {
            (key, name): value
            for key, node in one.items()
            for name, value in node["inputs"].items()
            if workflow.is_link(value)
        }
        for one in (prompt, shipped)
    ]
    assert links[0] == links[1]
    for title in gallery.CASES[name].shown:
        assert prompt[workflow.node_id(prompt, title)]["class_type"] in ("SaveImage", "CLEARSaveLarge")
    words = {one.prompt for one in scenes.descriptions()}
    texts = [node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "CLIPTextEncode"]
    assert texts
    assert words.issuperset(texts)


@pytest.mark.parametrize("count", [1, 3])
def test_images_are_laid_into_the_lower_right_corner(tmp_path: Path, count: int) -> None:
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (1600, 700), (20, 20, 20)).save(path)
    assert gallery_inset.marked(path) is None
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200)][:count]
    images = [Image.new("RGB", (256, 256), colour) for colour in colours]
    for _ in range(2):  # a second time, over the first
        gallery_inset.lay(path, images, "and more")
        box = gallery_inset.marked(path)
        assert box is not None
        left, top, right, bottom = box
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert 1600 - right == 700 - bottom < 20
        width = (right - left) / count
        for number, colour in enumerate(colours):
            x = round(left + (number + 0.5) * width)
            assert np.abs(pixels[(top + bottom) // 2, x] - colour).max() < 12
        caption = pixels[bottom - 16 : bottom - 2, left:right]
        assert caption.min() < 120 and caption.max() > 230
        pixels[top - 8 : bottom + 8, left - 8 : right + 8] = 20
        assert np.abs(pixels - 20).max() < 12
