"""Save Large Image and Load Large Image in a real server, beside ComfyUI's Save Image and Load Image."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from playwright.sync_api import Page

from devtools import workflow
from devtools.page import drop_png

PIXELS = np.random.default_rng(3).integers(0, 256, (90, 70, 4), dtype=np.uint8)
WORKFLOW = {"nodes": [], "extra": {"of": "the page", "title": "日本"}}


def prompt(client: Any, kind: str = "png", prefix: str = "large/CLEAR") -> dict[str, Any]:
    """An image, saved by Save Image as node 2 and by Save Large Image as node 3."""
    name = client.upload_picture("large.png", Image.fromarray(PIXELS[..., :3]))
    save = {"images": ["1", 0], "filename_prefix": prefix, "format": kind}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "core"}},
        "3": {"class_type": "CLEARSaveLarge", "inputs": save},
    }


def opened(client: Any, reference: dict[str, str]) -> tuple[np.ndarray, dict[Any, Any]]:
    with Image.open(io.BytesIO(client.image(reference))) as image:
        return np.asarray(image), dict(image.info)


def test_a_png_is_save_images_and_load_image_reads_it(client: Any) -> None:
    run = client.run(prompt(client), pnginfo={"workflow": WORKFLOW})
    (core,), (large,) = (run.outputs[node]["images"] for node in ("2", "3"))
    assert large["type"] == core["type"] == "output"
    assert large["subfolder"] == "large"
    (pixels, info), (expected, expected_info) = opened(client, large), opened(client, core)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(pixels, PIXELS[..., :3])
    assert info == expected_info
    assert json.loads(info["workflow"]) == WORKFLOW
    assert json.loads(info["prompt"])["3"]["class_type"] == "CLEARSaveLarge"
    assert [(step.value, step.total) for step in run.steps_of("3")] == [(90, 90)]
    again = {
        "1": {"class_type": "LoadImage", "inputs": {"image": f"large/{large['filename']} [output]"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "again"}},
    }
    (read,) = client.run(again).images()
    np.testing.assert_array_equal(opened(client, read)[0], pixels)


def test_a_tiff_is_shown_small_and_a_part_of_it_is_loaded(client: Any) -> None:
    run = client.run(prompt(client, "tiff"), pnginfo={"workflow": WORKFLOW})
    ((shown,), (file,)) = (run.outputs["3"][key] for key in ("images", "clear_files"))
    assert (shown["type"], file["type"], file["subfolder"]) == ("temp", "output", "large")
    np.testing.assert_array_equal(opened(client, shown)[0], PIXELS[..., :3])
    with tifffile.TiffFile(io.BytesIO(client.image(file))) as tiff:
        np.testing.assert_array_equal(tiff.asarray(), PIXELS[..., :3])
        assert json.loads(tiff.pages.first.description)["workflow"] == WORKFLOW
    region = {"image": f"large/{file['filename']} [output]", "left": 10, "top": 20, "width": 30, "height": 0}
    part = {
        "1": {"class_type": "CLEARLoadLarge", "inputs": region},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "part"}},
    }
    (saved,) = client.run(part).images()
    np.testing.assert_array_equal(opened(client, saved)[0], PIXELS[20:, 10:40, :3])


def test_alpha_comes_back_as_load_images_mask(client: Any) -> None:
    name = client.upload_picture("large_alpha.png", Image.fromarray(PIXELS))
    masks = []
    for node, more in (("LoadImage", {}), ("CLEARLoadLarge", {"left": 0, "top": 0, "width": 0, "height": 0})):
        nodes = {
            "1": {"class_type": node, "inputs": {"image": name, **more}},
            "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 1]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "mask"}},
        }
        (saved,) = client.run(nodes).images()
        masks.append(opened(client, saved)[0])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert len(np.unique(masks[0])) > 200


def test_a_saved_png_that_is_dropped_opens_its_workflow(page: Page, client: Any) -> None:
    given = workflow.page_form("20_compare")
    run = client.run(prompt(client), pnginfo={"workflow": given})
    page.evaluate("() => app.graph.clear()")
    drop_png(page, client.image(run.outputs["3"]["images"][0]))
    page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(given["nodes"]))
    types = page.evaluate("() => app.graph.nodes.map((node) => node.type)")
    assert sorted(types) == sorted(node["type"] for node in given["nodes"])


def test_the_page_shows_a_png_and_the_copy_of_a_tiff(page: Page, client: Any) -> None:
    """As it draws what a node has saved: from the reference in its output."""
    shown = """async (reference) => {
        const image = new Image()
        image.src = app.api.apiURL('/view?' + new URLSearchParams(reference))
        await image.decode()
        return [image.naturalWidth, image.naturalHeight]
    }"""
    for kind in ("png", "tiff"):
        run = client.run(prompt(client, kind))
        assert page.evaluate(shown, run.outputs["3"]["images"][0]) == [70, 90]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "jpg"}, "format is 'jpg'; choose one of: png, tiff"),
        ({"format": 5}, "format is .*5.*; choose one of: png, tiff"),
    ],
)
def test_a_format_that_is_none_is_refused_when_queued(client: Any, change: dict[str, Any], words: str) -> None:
    nodes = prompt(client)
    del nodes["2"]
    nodes["3"]["inputs"] |= change
    with pytest.raises(Exception, match=rf"CLEARSaveLarge \(node 3\).*{words}"):
        client.queue(nodes)


def test_a_region_out_of_the_image_is_refused_when_queued(client: Any) -> None:
    name = client.upload_picture("large.png", Image.fromarray(PIXELS[..., :3]))
    inputs = {"image": name, "left": 60, "top": 0, "width": 11, "height": 0}
    nodes = {
        "1": {"class_type": "CLEARLoadLarge", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "part"}},
    }
    with pytest.raises(Exception, match=r"CLEARLoadLarge \(node 1\).*width is 11 from left 60, but the image is 70"):
        client.queue(nodes)


def test_a_folder_outside_the_output_folder_is_refused(client: Any) -> None:
    nodes = prompt(client, prefix="../outside")
    del nodes["2"]
    with pytest.raises(Exception, match="outside the output folder is not allowed"):
        client.run(nodes)


def test_the_page_is_told_to_offer_files_and_an_upload(client: Any, object_info: dict[str, Any]) -> None:
    client.upload_picture("large_listed.png", Image.fromarray(PIXELS))
    ours, core = (client.object_info()[node]["input"]["required"]["image"] for node in ("CLEARLoadLarge", "LoadImage"))
    assert ours[0] == "COMBO"
    assert ours[1]["image_upload"] is core[1]["image_upload"] is True
    assert "large_listed.png" in ours[1]["options"]
    assert object_info["CLEARSaveLarge"]["output_node"] is True
