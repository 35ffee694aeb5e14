"""Compare Images on the real server: what the node shows, gives out and refuses."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

PIXELS = np.random.default_rng(1).integers(0, 200, (180, 190, 3), dtype=np.uint8)


def prompt(client: Any, a: np.ndarray, b: np.ndarray, gain: float = 2.0, *, save: bool = True) -> dict[str, Any]:
    names = []
    for name, pixels in (("compare_a.png", a), ("compare_b.png", b)):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        names.append(client.upload(name, data.getvalue()))
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": names[0]}},
        "2": {"class_type": "LoadImage", "inputs": {"image": names[1]}},
        "3": {"class_type": "CLEARCompare", "inputs": {"image_a": ["1", 0], "image_b": ["2", 0], "gain": gain}},
    }
    if save:
        nodes["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 1], "filename_prefix": "difference"}}
    return nodes


def test_the_node_shows_the_numbers_and_gives_out_the_difference(client: Any) -> None:
    run = client.run(prompt(client, PIXELS, PIXELS + 20))
    # Every value differs by 20 of 255.
    psnr = 20 * np.log10(255 / 20)
    ((node, text),) = run.texts
    assert node == "3"
    assert text.startswith(f"PSNR {psnr:.2f} dB, SSIM 0.9")
    assert "MS-SSIM 0.9" in text
    assert run.outputs["3"]["text"] == [text]
    assert run.steps_of("3")[-1].value == run.steps_of("3")[-1].total
    (saved,) = run.images()
    with Image.open(io.BytesIO(client.image(saved))) as picture:
        # SaveImage cuts off what is below a whole step.
        assert np.isin(np.asarray(picture), (39, 40)).all()


def test_it_runs_with_nothing_behind_it(client: Any) -> None:
    run = client.run(prompt(client, PIXELS, PIXELS, save=False))
    assert run.texts == [("3", "identical, no pixel differs")]


@pytest.mark.parametrize("gain", [float("nan"), 0.0, 1000.0])
def test_a_gain_that_means_nothing_is_refused_when_queued(client: Any, gain: float) -> None:
    with pytest.raises(Exception, match=r"CLEARCompare \(node 3\).*gain is .*allowed is 1 to 255"):
        client.queue(prompt(client, PIXELS, PIXELS, gain))


def test_two_sizes_are_named_in_the_middle_of_a_prompt(client: Any) -> None:
    with pytest.raises(Exception, match="image_a is 190 x 180 pixels and image_b is 190 x 90.*Upscale Image"):
        client.run(prompt(client, PIXELS, PIXELS[:90]))
