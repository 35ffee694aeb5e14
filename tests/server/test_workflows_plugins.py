"""Shipped workflows that plug something into FLUX with CLEAR: ControlNets, schnell, pictures, a comparison, prompts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from devtools import checkpoints_plugins, workflow
from devtools.client import Run
from devtools.plugged import SIDE, added, different, in_bands, same, small

UNION = Path(checkpoints_plugins.CONTROL_UNION).name
XLABS = Path(checkpoints_plugins.CONTROL_XLABS).name
SCHNELL = Path(checkpoints_plugins.SCHNELL).name

pytestmark = pytest.mark.usefixtures("plugin_files")

Shown = Callable[..., np.ndarray]


def clear_said(prompt: Any, run: Run) -> list[str]:
    return [text for node, text in run.texts if node == workflow.node_id(prompt, "CLEARApply")]


def pictures(client: Any, prompt: Any, run: Run) -> dict[str, np.ndarray]:
    """By the title of the node that saved them: uint8 [images, height, width, 3]."""
    found = {}
    for node, output in run.outputs.items():
        if images := output.get("images"):
            opened = [Image.open(io.BytesIO(client.image(image))).convert("RGB") for image in images]
            found[prompt[node]["_meta"]["title"]] = np.stack([np.asarray(image) for image in opened])
    return found


# ---- ControlNets -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def control(client: Any) -> Callable[..., Any]:
    """The shipped ControlNet workflow, guided by the edges of a disc and a bar."""
    image = Image.new("RGB", (160, 120), "black")
    ImageDraw.Draw(image).ellipse((30, 20, 90, 80), fill="white")
    ImageDraw.Draw(image).rectangle((100, 10, 120, 110), fill="red")
    name = client.upload_picture("to_follow.png", image)

    def make(*changes: workflow.Changes, steps: int = 1) -> Any:
        files: workflow.Changes = {"LoadImage": {"image": name}, "ControlNetLoader": {"control_net_name": UNION}}
        return small("11_controlnet", files, *changes, steps=steps)

    return make


def test_a_union_controlnet(shown: Shown, control: Any) -> None:
    guided, alone = shown(control()), shown(control({"ControlNetApplyAdvanced": {"strength": 0.0}}))
    assert different(guided, alone)
    other_type = shown(control({"SetUnionControlNetType": {"type": "depth"}}))
    assert not same(other_type, guided)
    # A single step is the first one, before half way.
    late = shown(control({"ControlNetApplyAdvanced": {"start_percent": 0.5}}))
    assert same(late, alone)


def test_two_controlnets_and_bands(shown: Shown, control: Any) -> None:
    """One of each format, together in both steps, and then each in a step of its own."""

    def two(end: float, start: float) -> Any:
        prompt = control({"ControlNetApplyAdvanced": {"end_percent": end}}, steps=2)
        first = workflow.node_id(prompt, "ControlNetApplyAdvanced")
        given = prompt[first]["inputs"] | {"positive": [first, 0], "negative": [first, 1], "control_net": ["xlabs", 0]}
        prompt = added(prompt, "xlabs", "ControlNetLoader", control_net_name=XLABS)
        prompt = added(
            prompt, "second", "ControlNetApplyAdvanced", **given | {"start_percent": start, "end_percent": 1.0}
        )
        return workflow.changed(prompt, {"BasicGuider": {"conditioning": ["second", 0]}})

    one = shown(control({"ControlNetApplyAdvanced": {"end_percent": 1.0}}, steps=2))
    together, in_turn = shown(two(1.0, 0.0)), shown(two(0.4, 0.4))
    assert different(together, one)
    assert different(in_turn, one)
    assert different(in_turn, together)
    assert same(shown(in_bands(two(1.0, 0.0)), "in bands"), together)


# ---- relatives of dev --------------------------------------------------------------------------------


def test_schnell_with_the_weights_made_for_dev(client: Any, picture: Any) -> None:
    prompt = small("14_schnell", {"UNETLoader": {"unet_name": SCHNELL}}, steps=2)
    run = client.run(prompt)
    said = clear_said(prompt, run)[-1]
    assert workflow.DEMO.clear in said
    assert "\nCLEAR ran: 4 layer calls" in said
    assert "\nfull attention: " not in said
    assert different(picture(run), picture(client.run(workflow.without_clear(prompt))))


def test_guidance_switched_off(shown: Shown) -> None:
    prompt = small("03_prompt_to_2k", {"Width": {"value": SIDE}, "Height": {"value": SIDE}})
    encoded = [workflow.node_id(prompt, "CLIPTextEncode"), 0]
    unguided = added(prompt, "off", "FluxDisableGuidance", conditioning=encoded)
    unguided = workflow.changed(unguided, {"BasicGuider": {"conditioning": ["off", 0]}})
    assert different(shown(unguided), shown(prompt))


# ---- from pictures -----------------------------------------------------------------------------------


def test_image_to_image_in_two_passes(client: Any, picture: Any) -> None:
    """Latents of 11 x 7 and 16 x 10 cells: the first has half a token on each side."""
    images = [Image.effect_noise((110, 70), 80), Image.new("L", (110, 70), 128)]
    found = []
    for number, image in enumerate(images):
        name = client.upload_picture(f"to_change_{number}.png", image.convert("RGB"))
        small_passes: workflow.Changes = {
            "LoadImage": {"image": name},
            "Size": {"width": 88},
            "CLEARApply": {"radius": 2},
            "Scheduler of the first pass": {"steps": 2},
            "Scheduler of the second pass": {"steps": 2},
        }
        prompt = workflow.server_form("04_image_to_image")
        prompt = workflow.changed(prompt, workflow.DEMO.changes(), small_passes)
        run = client.run(prompt)
        said = clear_said(prompt, run)
        assert sum("\nCLEAR ran: 4 layer calls" in text for text in said) == 2, "both passes, 2 steps of 2 blocks each"
        assert not any("\nfull attention: " in text for text in said)
        found.append(picture(run))
        assert found[-1].shape == (80, 128, 3)
    assert not same(*found), "the picture that went in makes no difference"


def test_dense_and_clear_side_by_side(client: Any) -> None:
    prompt = small("20_compare", steps=2)
    run = client.run(prompt)
    said = clear_said(prompt, run)[-1]
    assert "\nCLEAR ran: 4 layer calls" in said, "the dense half is not CLEAR's"
    saved = pictures(client, prompt, run)
    dense, clear = (saved[f"Picture, {name}"].astype(float) for name in ("dense", "CLEAR"))
    assert different(dense, clear)
    compare = workflow.node_id(prompt, "CLEARCompare")
    (text,) = run.outputs[compare]["text"]
    (psnr,) = re.findall(r"PSNR ([\d.]+) dB", text)
    # What is saved is rounded to 8 bits, what is compared is not.
    assert float(psnr) == pytest.approx(10 * np.log10(255**2 / ((dense - clear) ** 2).mean()), abs=0.1)
    gain = prompt[compare]["inputs"]["gain"]
    expected = np.minimum(gain * np.abs(dense - clear), 255)
    assert np.abs(saved["Where they differ"] - expected).max() <= 2 * gain

    # A window larger than the picture, and no distilled weights: dense attention by another way.
    everything = workflow.changed(prompt, {"CLEARApply": {"radius": 20, "strength": 0.0}})
    run = client.run(everything)
    assert workflow.node_id(everything, "Dense") in run.cached
    (text,) = run.outputs[compare]["text"]
    assert "identical" in text or float(re.findall(r"PSNR ([\d.]+) dB", text)[0]) > 60


# ---- batches and prompts -----------------------------------------------------------------------------


def test_batches_prompts_of_two_lengths_and_a_negative_one(client: Any) -> None:
    """Two texts in turn at each step, one of them together with the negative prompt: four samples at a time."""
    plain = small("03_prompt_to_2k", {"Width": {"value": SIDE}, "Height": {"value": SIDE}})
    clip, encoded = [workflow.node_id(plain, "DualCLIPLoader"), 0], [workflow.node_id(plain, "CLIPTextEncode"), 0]
    plain = added(plain, "long", "CLIPTextEncode", clip=clip, text="grey waves under low clouds, " * 20)
    plain = added(plain, "negative", "CLIPTextEncode", clip=clip, text="blurred")
    combined = added(plain, "both", "ConditioningCombine", conditioning_1=encoded, conditioning_2=["long", 0])
    combined = workflow.changed(combined, {"FluxGuidance": {"conditioning": ["both", 0]}})
    guider = combined[workflow.node_id(combined, "BasicGuider")]
    positive = guider["inputs"].pop("conditioning")
    guider["class_type"] = "CFGGuider"
    guider["inputs"] |= {"positive": positive, "negative": ["negative", 0], "cfg": 2.0}
    concatenated = added(plain, "both", "ConditioningConcat", conditioning_to=encoded, conditioning_from=["long", 0])
    concatenated = workflow.changed(concatenated, {"FluxGuidance": {"conditioning": ["both", 0]}})

    found = {}
    for name, prompt, batch, calls in (("one", combined, 1, 4), ("two", combined, 2, 4), ("long", concatenated, 1, 2)):
        prompt = workflow.changed(prompt, {"EmptySD3LatentImage": {"batch_size": batch}})
        run = client.run(prompt)
        said = clear_said(prompt, run)[-1]
        # A line for each length of text.
        assert sum(map(int, re.findall(r"\nCLEAR ran: (\d+) layer calls", said))) == calls
        assert "\nfull attention: " not in said
        (found[name],) = pictures(client, prompt, run).values()
    assert [len(images) for images in found.values()] == [1, 2, 1]
    assert same(found["two"][0], found["one"][0])
    assert different(found["two"][1], found["one"][0])
    assert different(found["long"][0], found["one"][0])
