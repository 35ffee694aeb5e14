"""VAE nodes that CLEAR High-Res Upscale adds to the graph that it expands into. Users never place them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .high_res_parts import HIDDEN
from .options.vae import AUTO, TILINGS
from .schema import CATEGORY, make


class CLEARStageEncode(io.ComfyNode):
    """VAEEncode where the image fits into memory, else VAEEncodeTiled: known only when it runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARStageEncode",
            display_name="CLEAR Stage Encode",
            category=f"{CATEGORY}/internal",
            **HIDDEN,
            description="Part of CLEAR High-Res Upscale, which adds it automatically.",
            inputs=[
                make(io.Image.Input, "pixels", tooltip="The enlarged image."),
                *_vae_inputs(),
            ],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, pixels: Any, vae: Any, vae_tiling: str, stage: int) -> io.NodeOutput:
        latent, plan = host.vae_encode(vae, pixels, vae_tiling)
        host.node_text_sender(cls.hidden.unique_id)(f"Stage {stage}, VAE encode: {plan.text}")
        return io.NodeOutput({"samples": latent})


class CLEARStageDecode(io.ComfyNode):
    """VAEDecode where the image fits into memory, else VAEDecodeTiled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARStageDecode",
            display_name="CLEAR Stage Decode",
            category=f"{CATEGORY}/internal",
            **HIDDEN,
            description="Part of CLEAR High-Res Upscale, which adds it automatically.",
            inputs=[
                make(io.Latent.Input, "samples", tooltip="The sampled latent."),
                *_vae_inputs(),
            ],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, samples: Any, vae: Any, vae_tiling: str, stage: int) -> io.NodeOutput:
        image, plan = host.vae_decode(vae, samples["samples"], vae_tiling)
        host.node_text_sender(cls.hidden.unique_id)(f"Stage {stage}, VAE decode: {plan.text}")
        return io.NodeOutput(image)


def _vae_inputs() -> list[io.Input]:
    return [
        make(io.Vae.Input, "vae", tooltip="As linked to the upscale."),
        make(io.Combo.Input, "vae_tiling", options=list(TILINGS), default=AUTO, tooltip="As on the upscale."),
        make(io.Int.Input, "stage", default=1, min=1, tooltip="Number of the stage."),
    ]
