"""The prompt of an image that ComfyUI has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from host.training_set.made import GENERATE, captioned, node, saved_by_comfyui

KSAMPLER = {
    "1": node("CLIPTextEncode", clip=("9", 1), text="a hill"),
    "2": node("CLIPTextEncode", clip=("9", 1), text="blurry"),
    "3": node("KSampler", positive=("1", 0), negative=("2", 0), seed=1),
    "4": node("VAEDecode", samples=("3", 0)),
    "5": node("SaveImage", images=("4", 0), filename_prefix="x"),
}
GUIDER = {
    "1": node("CLIPTextEncode", text=("8", 0)),
    "2": node("FluxGuidance", conditioning=("1", 0), guidance=3.5),
    "3": node("BasicGuider", model=("9", 0), conditioning=("2", 0)),
    "4": node("SamplerCustomAdvanced", noise=("7", 0), guider=("3", 0)),
    "5": node("VAEDecode", samples=("4", 0)),
    "6": node("SaveImage", images=("5", 0)),
    "8": node("PrimitiveStringMultiline", value="a hill"),
}
TWO_STAGES = {
    # The first stage comes first in the file; the image is of the second.
    "1": node("CLIPTextEncode", text="a sketch"),
    "2": node("KSampler", positive=("1", 0), negative=("1", 0)),
    "3": node("CLIPTextEncodeFlux", clip_l="hill", t5xxl="a hill", guidance=3.5),
    "4": node("ControlNetApplyAdvanced", positive=("3", 0), negative=("1", 0)),
    "5": node("KSampler", positive=("4", 0), negative=("4", 1), latent_image=("2", 0)),
    "6": node("VAEDecode", samples=("5", 0)),
    "7": node("SaveImage", images=("6", 0)),
}


@pytest.mark.parametrize("graph", [KSAMPLER, GUIDER, TWO_STAGES], ids=["KSampler", "guider", "two stages"])
def test_the_prompt_of_an_image_that_comfyui_saved(run: Any, folder: Path, graph: Any) -> None:
    saved_by_comfyui(folder / "a.png", graph)
    samples, _ = run(folder=str(folder))
    assert [samples.read(n).prompt for n in range(len(samples))] == ["a hill"]


def test_the_text_beside_an_image_is_before_its_metadata(run: Any, folder: Path) -> None:
    saved_by_comfyui(folder / "a.png", KSAMPLER).with_suffix(".txt").write_text("mine\n", encoding="utf-8-sig")
    assert run(folder=str(folder))[0].read(0).prompt == "mine"


def test_half_a_character_in_a_prompt(run: Any, folder: Path, flux: Any) -> None:
    """JSON may have it, UTF-8 and the tokenizers may not."""
    saved_by_comfyui(folder / "a.png", {**KSAMPLER, "1": node("CLIPTextEncode", text="a \ud83d hill")})
    assert run(folder=str(folder))[0].read(0).prompt == "a ? hill"
    assert run(GENERATE, prompts="a \ud83d hill", model=flux)[0].read(0).prompt == "a ? hill"


LOOP = {"1": node("KSampler", positive=("2", 0)), "2": node("FluxGuidance", conditioning=("2", 0), text=("3", 0))}
LOOP["3"] = node("Text", value=("3", 0))
CHAIN = {str(n): node("FluxGuidance", positive=(str(n + 1), 0)) for n in range(5000)}


@pytest.mark.parametrize(
    "graph",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        {"1": 3, "2": {"inputs": []}},
        LOOP,
        CHAIN,
        {"1": node("KSampler", positive=("7", 0))},
    ],
    ids=["no JSON", "a list", "null", "deep JSON", "no nodes", "a loop", "a long chain", "a link to nothing"],
)
def test_metadata_without_a_prompt(run: Any, folder: Path, graph: Any) -> None:
    captioned(folder / "a.png", "a")
    saved_by_comfyui(folder / "b.png", graph)
    samples, report = run(folder=str(folder))
    assert len(samples) == 1
    assert report.split("\n")[1] == "1 left out:"
    assert report.split("\n")[2].startswith("b.png: ")
