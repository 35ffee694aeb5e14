"""CLEAR 4K / 8K: each preset is the single nodes that it stands for, with the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.models import clear_tensors, flux_model, inputs, run_forward

WEIGHTS = {"fast": 8, "balanced": 16, "detail": 32, "memory saver": 8}
SIZES = ((48, 40), (384, 512))  # latent cells: a small image, and 4096 x 3072 px


@pytest.fixture
def released(nodes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models/clear that holds every file of the presets, made for the small model."""
    import folder_paths

    for radius in set(WEIGHTS.values()):
        save_file(clear_tensors(flux_model(), seed=radius), tmp_path / f"clear_local_{radius}.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clear", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def preset(nodes_api: Any, model: Any, name: str = "balanced", devices: str = "cpu") -> Any:
    return nodes_api.execute("CLEARPreset", model=model, preset=name, devices=devices)[0]


def expanded(nodes_api: Any, folder: Path, model: Any, name: str, devices: str, size: tuple[int, int]) -> Any:
    """The nodes that the page puts in the preset's place, run one after the other."""
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    pixels = size[1] * 8, size[0] * 8
    nodes = nodes_api.module("nodes.options.presets").single_nodes(name, devices, *pixels)
    loader, apply, shift, bands = nodes
    assert [node["type"] for node in nodes] == [
        *("CLEARWeightsLoader", "CLEARApply", "ModelSamplingFlux", "CLEARMultiGPU")
    ]
    patched = nodes_api.apply(model, nodes_api.weights(folder / loader["widgets"]["weights_name"]), **apply["widgets"])
    (shifted,) = ModelSamplingFlux().patch(patched, width=1024, height=1024, **shift["widgets"])
    return nodes_api.execute("CLEARMultiGPU", model=shifted, text_merge="exact", **bands["widgets"])[0]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_preset_is_its_single_nodes_bit_for_bit(nodes_api: Any, released: Path, name: str, devices: str) -> None:
    one = preset(nodes_api, flux_model(), name, devices)
    for size in SIZES if name == "balanced" or devices == "cpu" else SIZES[:1]:
        by_hand = expanded(nodes_api, released, flux_model(), name, devices, size)
        given = inputs(*size)
        assert torch.equal(run_forward(one, **given), run_forward(by_hand, **given))
        assert torch.equal(sigmas(one), sigmas(by_hand))


def sigmas(model: Any) -> Tensor:
    return model.get_model_object("model_sampling").sigmas


def test_the_node_says_what_it_chose(nodes_api: Any, released: Path, shown: Any) -> None:
    patched = preset(nodes_api, flux_model(), "memory saver")
    run_forward(patched, **inputs(*SIZES[1]))
    lines = shown["CLEARPreset"][-1].splitlines()
    assert lines[0] == "memory saver: smallest window, bands of 8 rows; time shift 1.1, fixed"
    assert lines[1] == "radius 8, clear_local_8.safetensors"
    assert "by size (4096 x 3072 px): ntk_factor 10, proportional attention" in lines
    assert lines[-1] == "24 bands of 8 rows of tokens on cpu"


def test_a_schedule_that_was_chosen_before_stays(nodes_api: Any, released: Path, shown: Any) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    (chosen,) = ModelSamplingFlux().patch(flux_model(), max_shift=2.0, base_shift=2.0, width=1024, height=1024)
    assert torch.equal(sigmas(preset(nodes_api, chosen)), sigmas(chosen))
    assert "time shift of the node before this one" in shown["CLEARPreset"][-1]


@pytest.mark.parametrize(("family", "bands"), [("FLUX.2", True), ("Chroma", False)])
def test_a_model_without_weights_gets_the_window(
    nodes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Any, family: str, bands: bool
) -> None:
    """Nothing is downloaded for it: there is no file here."""
    import folder_paths

    from devtools import models

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clear", ([str(tmp_path)], {".safetensors"}))
    model = {"FLUX.2": models.flux2_model, "Chroma": models.chroma_model}[family]()
    patched = preset(nodes_api, model)
    assert "window only, untrained weights" in shown["CLEARPreset"][-1]
    assert bool(patched.get_wrappers("diffusion_model", "clear_bands")) == bands


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"preset": "best"}, "preset is 'best'; choose one of: fast, balanced, detail, memory saver"),
        ({"devices": "gpu1"}, "devices has 'gpu1'; write auto"),
    ],
)
def test_bad_values_are_refused_when_the_prompt_is_queued(pack: dict[str, Any], values: Any, words: str) -> None:
    assert words in pack["CLEARPreset"].validate_inputs(**values)
    assert pack["CLEARPreset"].validate_inputs(preset=None, devices=None) is True


def test_a_model_that_has_clear_is_refused_before_anything_is_downloaded(nodes_api: Any) -> None:
    with pytest.raises(ValueError, match="CLEAR is already applied to this model, and CLEAR 4K / 8K"):
        preset(nodes_api, nodes_api.apply(flux_model(), radius=2))
