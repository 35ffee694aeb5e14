"""CLEAR High-Res Upscale on a picture of the small FLUX: the scene stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from host.executing import Graph, Machine, load_core_nodes
from host.pictures.studio import Studio, own_weights, psnr, scenery

SIDE, STAGES = 320, 2  # the model knows 256 alone: much further, it moves the horizon to where that was
STEPS, DENOISE = 2, 0.1
KEPT = 18.0
"""Of each stage, seen at the first picture's size, to the first picture, in dB. Measured: 29.6 and 24.2; at 512
pixels, where the scene is lost, 14.9."""


def upscale(machine: Machine) -> list[Tensor]:
    """The picture of each stage."""
    graph = Graph()
    given = {name.lower(): graph.add(f"Give{name}") for name in ("MODEL", "VAE", "WEIGHTS", "IMAGE")}
    node, _ = graph.add(
        "CLEARHighRes",
        **given,
        positive=graph.add("GiveCONDITIONING"),
        target_megapixels=SIDE**2 / 1e6,
        stages=STAGES,
        denoise=DENOISE,
        steps=STEPS,
        guidance=3.5,
        ntk_factor=0.0,
        proportional_attention=True,
        seed=1,
        sampler_name="euler",
        scheduler="simple",
        devices="cpu",
        bands=2,
    )
    graph.add("Keep", images=[node, 1], name="stages")
    run = machine.run(graph)
    assert run.ended == "execution_success"
    assert run.steps == [1, 2] * STAGES
    return run.images["stages"]


def test_the_stages_keep_the_scene(host: Any, studio: Studio, dense: Tensor, nodes_api: Any, tmp_path: Path) -> None:
    load_core_nodes(host, ("nodes_custom_sampler", "nodes_flux", "nodes_images", "nodes_model_advanced"))
    prompt = studio.prompt(0)
    given = {
        "GiveMODEL": ("MODEL", studio.model),
        "GiveVAE": ("VAE", studio.vae),
        "GiveCONDITIONING": ("CONDITIONING", [[prompt["context"], {"pooled_output": prompt["pooled_text"]}]]),
        "GiveWEIGHTS": (
            "CLEAR_WEIGHTS",
            nodes_api.weights(own_weights(nodes_api, studio.model, tmp_path / "clear_local_16.safetensors")),
        ),
        "GiveIMAGE": ("IMAGE", dense[:1]),
    }
    stages = upscale(Machine(host, given))
    assert [stage.shape[1] for stage in stages] == [288, SIDE]
    for stage in stages:
        small = torch.nn.functional.interpolate(
            stage.movedim(-1, 1), (256, 256), mode="bilinear", antialias=True
        ).movedim(1, -1)
        assert psnr(small, dense[:1]) > KEPT
        assert scenery(studio.scores(stage)) == scenery(studio.scores(dense[:1]))
