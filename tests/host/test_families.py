"""FLUX.2 and Chroma: the window alone, against its mask, on models of the host's own classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clear_core.layout import Grid
from devtools.models import chroma_model, clear_tensors, flux2_model, flux_model, inputs, run_forward, sample

from host.comparing import error
from host.oracle import with_mask


def inputs_of(family: str, height: int, width: int, **options: Any) -> dict[str, Any]:
    """height, width: in tokens, made odd in latent cells where a token has two."""
    if family == "FLUX.2":
        return inputs(height, width, channels=128, **options)
    return inputs(2 * height - 1, 2 * width - 1, **options)


MODELS: dict[str, Callable[..., Any]] = {"FLUX.2": flux2_model, "Chroma": chroma_model}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_the_window_is_dense_attention_under_its_mask(host: Any, nodes_api: Any, family: str, backend: str) -> None:
    model, given = MODELS[family](), inputs_of(family, 12, 17, batch=2, text=30)
    output = nodes_api.apply_output(model, radius=4, backend=backend)
    out = run_forward(output.args[0], **given)
    assert error(out, run_forward(with_mask(model, Grid(12, 17), 4), **given)) < 1e-5
    assert error(out, run_forward(model, **given)) > 1e-3
    assert f"experimental: {family}" in output.ui["text"][0]


@pytest.mark.parametrize("view", ["window", "all tokens"])
def test_flux_2_sees_reference_images_as_defined(host: Any, nodes_api: Any, view: str) -> None:
    model, given = flux2_model(), inputs_of("FLUX.2", 10, 8)
    latents = [torch.randn(1, 128, *size, generator=torch.Generator().manual_seed(7)) for size in ((10, 8), (6, 15))]
    grids = (Grid(10, 8), Grid(6, 15))
    out = run_forward(nodes_api.apply(model, radius=3, references=view), **given, ref_latents=latents)
    oracle = with_mask(model, Grid(10, 8), 3, grids, "all" if view == "all tokens" else "window")
    assert error(out, run_forward(oracle, **given, ref_latents=latents)) < 1e-5


@pytest.mark.parametrize("family", MODELS)
def test_a_mask_on_top_of_the_window(host: Any, nodes_api: Any, family: str) -> None:
    model, given = MODELS[family](), inputs_of(family, 8, 7)
    tokens = 9 + 8 * 7
    mask = torch.randn(1, tokens, tokens, generator=torch.Generator().manual_seed(4))
    out = run_forward(nodes_api.apply(model, radius=3), **given, attention_mask=mask)
    assert error(out, run_forward(with_mask(model, Grid(8, 7), 3), **given, attention_mask=mask)) < 1e-5


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_flux_2_runs_in_bands(host: Any, nodes_api: Any, devices: str) -> None:
    model, given = flux2_model(), inputs_of("FLUX.2", 20, 13)
    patched = nodes_api.apply(model, radius=4)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=4, text_merge="exact")
    assert error(run_forward(banded, **given), run_forward(patched, **given)) < 1e-6


def test_chroma_is_not_cut(host: Any, nodes_api: Any) -> None:
    patched = nodes_api.apply(chroma_model(), radius=4)
    with pytest.raises(ValueError, match="CLEAR Multi-GPU works on FLUX models; this one is Chroma"):
        nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=2, text_merge="exact")


@pytest.mark.parametrize("family", MODELS)
def test_no_weights_exist_for_them(host: Any, nodes_api: Any, tmp_path: Path, family: str) -> None:
    save_file(clear_tensors(flux_model()), tmp_path / "clear_local_3.safetensors")
    weights = nodes_api.weights(tmp_path / "clear_local_3.safetensors")
    model = MODELS[family]()
    with pytest.raises(ValueError, match=f"distilled for FLUX.1 and this model is {family}.*Disconnect weights"):
        nodes_api.apply(model, weights)
    assert not model.patches
    assert nodes_api.apply(model, weights, strength=0.0)


def test_chroma_samples_to_the_end(host: Any, nodes_api: Any) -> None:
    output = nodes_api.apply_output(chroma_model(), radius=4)
    assert sample(output.args[0], 16, 20).isfinite().all()


@pytest.mark.parametrize("family", ["LongCat-Image", "Ovis-Image"])
def test_others_of_flux_1s_class_are_experimental(host: Any, nodes_api: Any, tmp_path: Path, family: str) -> None:
    """LongCat has no pooled prompt. The oldest host has no Ovis, which differs in its MLPs: its parameters say so."""
    model = flux_model(vec_in_dim=None, guidance_embed=False) if family == "LongCat-Image" else flux_model()
    if family == "Ovis-Image":
        model.model.diffusion_model.params.yak_mlp = True
    given = inputs(23, 33)
    output = nodes_api.apply_output(model, radius=4)
    assert f"experimental: {family}" in output.ui["text"][0]
    assert error(run_forward(output.args[0], **given), run_forward(with_mask(model, Grid(12, 17), 4), **given)) < 1e-5
    save_file(clear_tensors(flux_model()), tmp_path / "clear_local_3.safetensors")
    weights = nodes_api.weights(tmp_path / "clear_local_3.safetensors")
    with pytest.raises(ValueError, match=f"distilled for FLUX.1 and this model is {family}.*Disconnect weights"):
        nodes_api.apply(model, weights)
