"""The shipped workflows of FLUX.1's tools and of its relatives, on generated checkpoints of their true width."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from devtools import checkpoints, checkpoints_tools, workflow
from devtools.client import ComfyClient, Run
from devtools.own_base import OwnBase

Prompt = dict[str, Any]


def named(path: str) -> str:
    return Path(path).name


@pytest.fixture(scope="module", autouse=True)
def files(base: OwnBase) -> None:
    """They are made from the demo's own, which the base folder has."""
    base.add(checkpoints_tools.make_tool_files)


@pytest.fixture(scope="module")
def uploaded(client: ComfyClient) -> Callable[..., str]:
    """Puts a picture of noise into the input folder; hole: the part of it to paint over. Its name."""

    def upload(name: str, width: int, height: int, hole: tuple[int, int, int, int] | None = None) -> str:
        image = Image.effect_noise((width // 16, height // 16), 90).resize((width, height)).convert("RGBA")
        if hole is not None:
            image.paste((0, 0, 0, 0), hole)
        data = io.BytesIO()
        image.save(data, "PNG")
        return client.upload(name, data.getvalue())

    return upload


def small(name: str, *changes: workflow.Changes) -> Prompt:
    """A shipped workflow on the demo's files, two steps, a window that leaves much of a small image out of sight."""
    prompt = workflow.server_form(name)
    types = {node["class_type"] for node in prompt.values()}
    demo = {kind: values for kind, values in workflow.DEMO.changes().items() if kind in types}
    own: workflow.Changes = {"BasicScheduler": {"steps": 2}, "CLEARApply": {"radius": 2}}
    return workflow.changed(prompt, demo, own, *changes)


def add(prompt: Prompt, name: str, kind: str, **inputs: Any) -> Prompt:
    """A copy with one more node; inputs that are pairs are links, from a node's type or title."""
    prompt = workflow.changed(prompt)
    linked = {k: [workflow.node_id(prompt, v[0]), v[1]] if isinstance(v, tuple) else v for k, v in inputs.items()}
    prompt[name] = {"class_type": kind, "inputs": linked, "_meta": {"title": name}}
    return prompt


def with_latent(prompt: Prompt, name: str = "latent", node: str = "SamplerCustomAdvanced", slot: int = 0) -> Prompt:
    return add(prompt, name, "SaveLatent", samples=(node, slot), filename_prefix=name)


def latent_of(client: ComfyClient, run: Run, name: str = "latent") -> Tensor:
    """[channels, height, width], in cells of 8 pixels."""
    (reference,) = run.outputs[name]["latents"]
    return load(client.image(reference))["latent_tensor"][0]


def picture_of(client: ComfyClient, run: Run, prompt: Prompt, node: str = "Save Image") -> np.ndarray:
    (reference,) = run.outputs[workflow.node_id(prompt, node)]["images"]
    with Image.open(io.BytesIO(client.image(reference))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def said(run: Run, prompt: Prompt) -> str:
    """The text on Apply CLEAR Attention when the run was over: the window everywhere, nothing dense."""
    apply = workflow.node_id(prompt, "CLEARApply")
    text = [text for node, text in run.texts if node == apply][-1]
    assert "\nCLEAR ran: " in text
    assert "full attention: " not in text
    return text


def calls(text: str) -> int:
    return sum(int(count) for count in re.findall(r"^CLEAR ran: (\d+) layer calls", text, re.MULTILINE))


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


# ---- what enters the model ---------------------------------------------------------------------------


@pytest.mark.parametrize("flux", [checkpoints.FLUX, checkpoints_tools.FILL], ids=["dev with a noise mask", "Fill"])
def test_fill_paints_under_the_mask_and_nowhere_else(client: ComfyClient, uploaded: Any, flux: str) -> None:
    """A hole of 8 x 8 latent cells in 24 x 16. In the latent: the demo's decoder carries a change to every pixel."""
    image = uploaded("with_a_hole.png", 192, 128, hole=(64, 32, 128, 96))
    own: workflow.Changes = {"UNETLoader": {"unet_name": named(flux)}, "LoadImage": {"image": image}}
    prompt = with_latent(with_latent(small("16_fill", own)), "given", "InpaintModelConditioning", 2)
    run = client.run(prompt)
    assert calls(said(run, prompt)) == 4
    hole = torch.zeros(16, 24, dtype=torch.bool)
    hole[4:12, 8:16] = True
    change = (latent_of(client, run) - latent_of(client, run, "given")).abs().mean(0)
    assert change[~hole].max() < 1e-3
    assert change[hole].min() > 1e-2
    assert picture_of(client, run, prompt).shape == (128, 192, 3)


def test_fill_through_the_window_is_another_picture(client: ComfyClient, uploaded: Any) -> None:
    image = uploaded("with_a_hole.png", 192, 128, hole=(64, 32, 128, 96))
    own: workflow.Changes = {
        "UNETLoader": {"unet_name": named(checkpoints_tools.FILL)},
        "LoadImage": {"image": image},
    }
    prompts = (small("16_fill", own), workflow.without_clear(small("16_fill", own)))
    assert far(*(picture_of(client, client.run(prompt), prompt) for prompt in prompts)) > 1


def test_canny_paints_on_edges_through_the_window(client: ComfyClient, uploaded: Any) -> None:
    pictures = []
    for name in ("one.png", "other.png"):
        own: workflow.Changes = {
            "UNETLoader": {"unet_name": named(checkpoints_tools.CANNY)},
            "LoadImage": {"image": uploaded(name, 128, 96)},
            "Size": {"width": 160, "height": 128},
        }
        prompt = small("17_canny", own)
        run = client.run(prompt)
        assert calls(said(run, prompt)) == 4
        assert set(np.unique(picture_of(client, run, prompt, "Edges"))) == {0, 255}
        pictures.append(picture_of(client, run, prompt))
    assert pictures[0].shape == (128, 160, 3)
    assert far(*pictures) > 1


# ---- reference images --------------------------------------------------------------------------------


def kontext(uploaded: Any, *changes: workflow.Changes) -> Prompt:
    """Two pictures of other shapes. They are encoded as they are: scaled, each would be a whole megapixel."""
    prompt = small(
        "18_kontext",
        {
            "UNETLoader": {"unet_name": named(checkpoints_tools.KONTEXT)},
            "Size": {"width": 96, "height": 96},
            "Picture 1": {"image": uploaded("reference_1.png", 96, 64)},
            "Picture 2": {"image": uploaded("reference_2.png", 64, 128)},
        },
        *changes,
    )
    for number in ("1", "2"):
        scale = prompt.pop(workflow.node_id(prompt, f"Scale {number}"))
        prompt[workflow.node_id(prompt, f"Encode {number}")]["inputs"]["pixels"] = scale["inputs"]["image"]
    return prompt


def test_kontext_sees_two_references_whole_or_through_windows(client: ComfyClient, uploaded: Any) -> None:
    whole, windows = (kontext(uploaded, {"CLEARApply": {"references": view}}) for view in ("all tokens", "window"))
    pictures = {}
    for view, prompt in (("all tokens", whole), ("window", windows)):
        run = client.run(prompt)
        text = said(run, prompt)
        assert calls(text) == 4
        assert "6 x 6 image + 4 x 6 reference + 8 x 4 reference tokens" in text
        pictures[view] = picture_of(client, run, prompt)
    assert far(pictures["all tokens"], pictures["window"]) > 1

    # As shipped the references are seen whole; and scaled fp8 is the same weights, rounded.
    shipped = workflow.server_form("18_kontext")
    assert shipped[workflow.node_id(shipped, "CLEARApply")]["inputs"]["references"] == "all tokens"
    plain = workflow.changed(windows, {"UNETLoader": {"unet_name": named(checkpoints.FLUX)}})
    dense = workflow.without_clear(windows)
    rounded, other = (picture_of(client, client.run(prompt), prompt) for prompt in (plain, dense))
    assert far(rounded, pictures["window"]) < far(other, pictures["window"]) / 3


def test_kontext_takes_one_reference(client: ComfyClient, uploaded: Any) -> None:
    """Wired as the workflow's note says."""
    prompt = kontext(uploaded)
    first = [workflow.node_id(prompt, "Reference 1"), 0]
    prompt[workflow.node_id(prompt, "FluxKontextMultiReferenceLatentMethod")]["inputs"]["conditioning"] = first
    for unused in ("Reference 2", "Encode 2", "Picture 2"):
        prompt.pop(workflow.node_id(prompt, unused))
    text = said(client.run(prompt), prompt)
    assert calls(text) == 4
    assert "6 x 6 image + 4 x 6 reference tokens" in text


def redux(uploaded: Any, *changes: workflow.Changes) -> Prompt:
    own: workflow.Changes = {
        "LoadImage": {"image": uploaded("look.png", 64, 64)},
        "StyleModelLoader": {"style_model_name": named(checkpoints_tools.REDUX)},
        "CLIPVisionLoader": {"clip_name": named(checkpoints_tools.SIGLIP)},
        "Width": {"value": 128},
        "Height": {"value": 128},
        "BasicScheduler": {"steps": 1},
    }
    return small("13_redux", own, *changes)


def test_redux_brings_tokens_and_below_strength_1_a_mask(client: ComfyClient, uploaded: Any) -> None:
    pictures = []
    for strength in (1.0, 0.5):
        prompt = redux(uploaded, {"StyleModelApply": {"strength": strength}})
        run = client.run(prompt)
        text = said(run, prompt)
        assert calls(text) == 2
        assert f"{77 + 729} text + 8 x 8 image tokens" in text
        pictures.append(picture_of(client, run, prompt))
    assert far(*pictures) > 1


def test_a_mask_and_a_coarse_view_run_dense_and_the_node_says_so(client: ComfyClient, uploaded: Any) -> None:
    down = {"weights_name": named(checkpoints.CLEAR_DOWN)}
    prompt = redux(uploaded, {"CLEARWeightsLoader": down})
    text = client.run(prompt).texts[-1][1]
    assert "CLEAR ran: " not in text
    reason = "an attention mask has no exact meaning for down-sampled tokens (set down_factor to 1)"
    assert re.search(rf"^full attention: 2 layer calls, .*{re.escape(reason)}", text, re.MULTILINE)


# ---- several prompts ---------------------------------------------------------------------------------


def regional(left: str, **sampling: Any) -> Prompt:
    own: workflow.Changes = {
        "Width": {"value": 256},
        "Height": {"value": 128},
        "Region": {"width": 144},
        "Right": {"x": 112},
        "Prompt left": {"text": left},
        "BasicScheduler": {"steps": 1} | sampling,
    }
    return with_latent(small("12_regional", own))


def test_each_region_follows_its_own_prompt(client: ComfyClient) -> None:
    """In one step: what only the right prompt covers is the same, whatever the left one says."""
    prompts = [regional("snow"), regional("a red fox in the snow, " * 20)]
    latents, counts = [], []
    for prompt in prompts:
        run = client.run(prompt)
        counts.append(calls(said(run, prompt)))
        latents.append(latent_of(client, run))
    # Prompts of one length share a forward; one of another length has a forward of its own.
    assert counts == [2, 4]
    change = (latents[0] - latents[1]).abs().mean(0)
    assert change[:, 18:].max() < 1e-5
    assert change[:, :14].min() > 1e-3
    dense = workflow.without_clear(prompts[0])
    assert (latent_of(client, client.run(dense)) - latents[0]).abs().mean() > 1e-2


def test_chroma_takes_the_window_with_a_negative_prompt(client: ComfyClient) -> None:
    """T5 is too large to make up: CLIP-L twice stands in for it, as in the demo."""
    pictures = []
    for radius in (2, 100):
        own: workflow.Changes = {
            "UNETLoader": {"unet_name": named(checkpoints_tools.CHROMA)},
            "Size": {"width": 128, "height": 128},
            "CLEARApply": {"radius": radius},
            # Of another length than the prompt, so that each has forwards of its own.
            "Negative prompt": {"text": "blurred, dull, " * 25},
            "BasicScheduler": {"steps": 1},
        }
        prompt = small("19_chroma", own)
        clip = prompt[workflow.node_id(prompt, "CLIPLoader")]
        clip["class_type"] = "DualCLIPLoader"
        clip["inputs"] = {**workflow.DEMO.changes()["DualCLIPLoader"], "device": "default"}
        run = client.run(prompt)
        text = said(run, prompt)
        assert f"radius {radius}, window only, untrained weights" in text
        assert "experimental: Chroma, which was not trained for a window" in text
        assert calls(text) == 2 * 2
        pictures.append(picture_of(client, run, prompt))
    assert pictures[0].std() > 10
    assert far(*pictures) > 1


# ---- less time, less memory --------------------------------------------------------------------------


def fast(*changes: workflow.Changes) -> Prompt:
    return small("15_fast", {"Width": {"value": 96}, "Height": {"value": 96}}, *changes)


def test_fp8_weights_take_clear(client: ComfyClient) -> None:
    """The picture is the one of the weights as they are in the file, but for the rounding."""
    fp8 = fast()
    pictures = {}
    for name, prompt in {
        "fp8": fp8,
        "file": workflow.changed(fp8, {"UNETLoader": {"weight_dtype": "default"}}),
        "dense": workflow.without_clear(fp8),
    }.items():
        run = client.run(prompt)
        if name != "dense":
            assert calls(said(run, prompt)) == 4
        pictures[name] = picture_of(client, run, prompt)
    assert 0 < far(pictures["fp8"], pictures["file"]) < far(pictures["fp8"], pictures["dense"]) / 2


def test_easycache_leaves_out_steps_before_or_after_clear(client: ComfyClient) -> None:
    # From the first step to the last: EasyCache reads other limits off the schedule that the last prompt left behind.
    lazy = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0}
    # And from the weights as they are in the file: on a CPU fp8 takes most of a step's time.
    after = fast({"BasicScheduler": {"steps": 6}, "EasyCache": lazy, "UNETLoader": {"weight_dtype": "default"}})
    apply, cache, loader = (workflow.node_id(after, name) for name in ("CLEARApply", "EasyCache", "UNETLoader"))
    before = workflow.changed(after)
    before[cache]["inputs"]["model"] = [loader, 0]
    before[apply]["inputs"]["model"] = [cache, 0]
    before[workflow.node_id(after, "ModelSamplingFlux")]["inputs"]["model"] = [apply, 0]
    pictures = []
    for prompt in (after, before):
        run = client.run(prompt)
        # Without EasyCache: 6 steps of 2 layers.
        assert 2 <= calls(said(run, prompt)) < 6 * 2
        pictures.append(picture_of(client, run, prompt))
    assert pictures[0].std() > 10
    assert (pictures[0] == pictures[1]).all()
