"""The nodes of one stage of CLEAR High-Res Upscale, wired as a user would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .insight.upscale_run import Part
from .options.presets import TIME_SHIFT
from .options.stages import Stage


@dataclass(frozen=True, slots=True)
class StageNodes:
    """image: the link to the stage's image. ids: of the node that computes each part."""

    image: Any
    ids: Mapping[Part, str]


def add_stage(graph: Any, number: int, stage: Stage, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> StageNodes:
    """Add the nodes of one stage.

    number: of the stage, from 1. given: what the sockets got. inputs: the widgets' values.
    """
    model, vae, image = given["model"], given["vae"], given["image"]
    size = {"width": stage.width, "height": stage.height}
    passing = {"vae_tiling": inputs["vae_tiling"], "stage": number}
    if given["upscale_model"] is not None:
        image = graph.node("ImageUpscaleWithModel", upscale_model=given["upscale_model"], image=image).out(0)
    image = graph.node("ImageScale", image=image, upscale_method="lanczos", crop="center", **size).out(0)
    encoder = graph.node("CLEARStageEncode", pixels=image, vae=vae, **passing)
    if given["weights"] is not None:
        model = graph.node(
            "CLEARApply",
            model=model,
            weights=given["weights"],
            radius=0,
            down_factor=0,
            strength=1.0,
            backend="auto",
            ntk_factor=inputs["ntk_factor"] or stage.ntk_factor,
            proportional_attention=inputs["proportional_attention"],
            start_percent=0.0,
            end_percent=1.0,
            references="window",
        ).out(0)
    model = graph.node("ModelSamplingFlux", model=model, max_shift=TIME_SHIFT, base_shift=TIME_SHIFT, **size).out(0)
    guided = graph.node("FluxGuidance", conditioning=given["positive"], guidance=inputs["guidance"]).out(0)
    sampler = graph.node(
        "CLEARTiledSampler",
        noise=graph.node("RandomNoise", noise_seed=inputs["seed"]).out(0),
        guider=graph.node("BasicGuider", model=model, conditioning=guided).out(0),
        sampler=graph.node("KSamplerSelect", sampler_name=inputs["sampler_name"]).out(0),
        sigmas=graph.node(
            "BasicScheduler",
            model=model,
            scheduler=inputs["scheduler"],
            steps=inputs["steps"],
            denoise=inputs["denoise"],
        ).out(0),
        latent_image=encoder.out(0),
        devices=inputs["devices"],
        bands=inputs["bands"],
        text_merge="exact",
        machines=inputs["machines"],
    )
    decoder = graph.node("CLEARStageDecode", samples=sampler.out(0), vae=vae, save=inputs["save_stages"], **passing)
    return StageNodes(decoder.out(0), {"encode": encoder.id, "sample": sampler.id, "decode": decoder.id})
