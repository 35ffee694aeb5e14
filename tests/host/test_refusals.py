"""What cannot be is refused early, with its value and the fix, and leaves nothing half-applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from devtools.models import clear_tensors, flux_model


@pytest.fixture
def model(host: Any) -> Any:
    return flux_model()


def saved(nodes_api: Any, tmp_path: Path, model: Any, name: str = "clear_local_3.safetensors", **options: Any) -> Any:
    save_file(clear_tensors(model, **options), tmp_path / name)
    return nodes_api.weights(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "radius is 0.*no weights are connected.*set radius to 1..128"),
        ({"radius": -1}, "radius is -1; allowed is 0 to 128"),
        ({"radius": 129}, "radius is 129; allowed is 0 to 128"),
        ({"radius": 4, "down_factor": 9}, "down_factor is 9; allowed is 0 to 8"),
        ({"radius": 4, "strength": float("nan")}, "strength is nan; allowed is 0 to 1"),
        ({"radius": 4, "ntk_factor": 0.5}, r"ntk_factor is 0.5; allowed is 0 \(by size\) or 1 to 100"),
        ({"radius": 4, "start_percent": 0.6, "end_percent": 0.4}, "start_percent is 0.6 and end_percent is 0.4"),
        ({"radius": 4, "start_percent": 0.5, "end_percent": 0.5}, "the window would never be used"),
        ({"radius": 4, "backend": "cuda"}, "backend is 'cuda'; choose one of: auto"),
        ({"radius": 4, "references": "some"}, "references is 'some'; choose one of: window, all tokens"),
    ],
)
def test_impossible_settings_name_the_value(model: Any, nodes_api: Any, values: dict[str, Any], words: str) -> None:
    before = (str(model.model_options), dict(model.patches), dict(model.object_patches))
    with pytest.raises(ValueError, match=words):
        nodes_api.apply(model, **values)
    assert (str(model.model_options), model.patches, model.object_patches) == before


def test_end_before_start_is_refused_when_the_prompt_is_queued(pack: dict[str, Any]) -> None:
    node = pack["CLEARApply"]
    assert "never be used" in node.validate_inputs(start_percent=0.9, end_percent=0.1)
    assert "nan" in node.validate_inputs(start_percent=float("nan"), end_percent=1.0)
    assert node.validate_inputs(start_percent=0.0, end_percent=1.0) is True
    assert node.validate_inputs(start_percent=None, end_percent=0.1) is True


def test_weights_of_another_depth_or_width_are_refused(model: Any, nodes_api: Any, tmp_path: Path) -> None:
    deep = saved(nodes_api, tmp_path, flux_model(depth=2))
    with pytest.raises(ValueError, match="2 double and 2 single blocks, the model has 1 and 2"):
        nodes_api.apply(model, deep)
    wide = saved(nodes_api, tmp_path, flux_model(hidden_size=64, num_heads=4), "clear_local_4.safetensors")
    with pytest.raises(ValueError, match=r"has shape \(64,.*the model needs \(32,"):
        nodes_api.apply(model, wide)
    assert not model.patches


def test_weights_that_do_not_tell_their_radius_ask_for_it(model: Any, nodes_api: Any, tmp_path: Path) -> None:
    weights = saved(nodes_api, tmp_path, model, "mine.safetensors")
    with pytest.raises(ValueError, match="mine.safetensors does not say it.*Set radius"):
        nodes_api.apply(model, weights)
    assert "radius 5" in nodes_api.apply_output(model, weights, radius=5).ui["text"][0]


def test_a_radius_the_weights_were_not_trained_for_is_said(model: Any, nodes_api: Any, tmp_path: Path) -> None:
    weights = saved(nodes_api, tmp_path, model)
    assert "trained with radius 3" in nodes_api.apply_output(model, weights, radius=5).ui["text"][0]
    assert "trained" not in nodes_api.apply_output(model, weights).ui["text"][0]


def test_clear_twice_is_refused(model: Any, nodes_api: Any) -> None:
    with pytest.raises(ValueError, match=r"already applied to this model \(radius 4.*remove one of the two nodes"):
        nodes_api.apply(nodes_api.apply(model, radius=4), radius=8)


def test_positions_that_another_node_replaced_are_not_overwritten(model: Any, nodes_api: Any) -> None:
    stretched = model.clone()
    stretched.add_object_patch("diffusion_model.pe_embedder", torch.nn.Identity())
    with pytest.raises(
        ValueError, match="ntk_factor is 10.*already replaced the model's positions.*Set ntk_factor to 1"
    ):
        nodes_api.apply(stretched, radius=4, ntk_factor=10.0)
    assert nodes_api.apply(stretched, radius=4)


class ComfyFluxWrapper(torch.nn.Module):
    """Has the name of Nunchaku's FLUX, which is what a user of that pack connects."""


@pytest.mark.parametrize("kind", ["sdxl", "radiance", "nunchaku"])
def test_other_models_are_named(host: Any, nodes_api: Any, kind: str) -> None:
    import comfy.ldm.chroma_radiance.model
    import comfy.ldm.modules.diffusionmodules.openaimodel
    import comfy.model_patcher
    import comfy.ops

    operations = comfy.ops.disable_weight_init
    other: Any
    if kind == "radiance":
        other = comfy.ldm.chroma_radiance.model.ChromaRadiance.__new__(comfy.ldm.chroma_radiance.model.ChromaRadiance)
        torch.nn.Module.__init__(other)
        words = r"without weights, on FLUX.2 and Chroma; this model is Flux \(ChromaRadiance\)"
    elif kind == "nunchaku":
        other = ComfyFluxWrapper()
        words = "Nunchaku's own runtime.*Load FLUX with Load Diffusion Model"
    else:
        other = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
            image_size=8,
            in_channels=4,
            model_channels=32,
            out_channels=4,
            num_res_blocks=[1],
            num_heads=2,
            channel_mult=(1,),
            transformer_depth=[0],
            transformer_depth_output=[0, 0],
            transformer_depth_middle=-2,
            operations=operations,
            device="meta",
        )
        words = r"this model is Flux \(UNetModel\)"
    base = flux_model().model
    base.diffusion_model = other
    patcher = comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match=words):
        nodes_api.apply(patcher, radius=4)


def test_the_loader_reads_what_the_folder_lists(
    model: Any, nodes_api: Any, pack: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    host_module = nodes_api.module("nodes.host")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clear", ([], set()))
    folder_paths.filename_list_cache.clear()
    released = host_module.weights_files()
    assert released[0] == "clear_local_16.safetensors" and len(released) == 5
    with pytest.raises(ValueError, match=r"no weights file.*Put clear_local_16.safetensors.*into"):
        pack["CLEARWeightsLoader"].execute(weights_name="clear_local_3.safetensors")

    assert (tmp_path / "clear").is_dir(), "users are told to put files there"
    save_file(clear_tensors(model), tmp_path / "clear" / "clear_local_3.safetensors")
    (tmp_path / "clear" / "notes.txt").write_text("not weights")
    folder_paths.filename_list_cache.clear()
    assert host_module.weights_files() == ["clear_local_3.safetensors", *released]
    loader = pack["CLEARWeightsLoader"]
    first = loader.fingerprint_inputs(weights_name="clear_local_3.safetensors")
    weights = nodes_api.execute("CLEARWeightsLoader", weights_name="clear_local_3.safetensors")[0]
    assert weights.variant.radius == 3
    save_file(clear_tensors(flux_model(depth=2)), tmp_path / "clear" / "clear_local_3.safetensors")
    assert loader.fingerprint_inputs(weights_name="clear_local_3.safetensors") != first
    # A name from a workflow cannot leave the folder.
    (tmp_path / "secret.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no weights file"):
        loader.execute(weights_name="../secret.safetensors")
