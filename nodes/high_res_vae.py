"""VAE nodes that CLEAR High-Res Upscale adds to the graph that it expands into. Users never place them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn.functional import interpolate

from . import host
from .high_res_parts import internal_schema
from .options.vae import AUTO, TILINGS
from .schema import make

_PREVIEW = 1024  # pixels of its longer side


class CLEARStageEncode(io.ComfyNode):
    """VAEEncode where the image fits into memory, else VAE Encode in Strips: known only when it runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return internal_schema(
            node_id="CLEARStageEncode",
            display_name="CLEAR Stage Encode",
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
    """VAEDecode where the image fits into memory, else VAE Decode in Strips; the node on the page shows the image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return internal_schema(
            node_id="CLEARStageDecode",
            display_name="CLEAR Stage Decode",
            inputs=[
                make(io.Latent.Input, "samples", tooltip="The sampled latent."),
                *_vae_inputs(),
                make(io.Boolean.Input, "save", default=False, tooltip="Whether to save the image."),
            ],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, samples: Any, vae: Any, vae_tiling: str, stage: int, save: bool) -> io.NodeOutput:
        image, plan = host.vae_decode(vae, samples["samples"], vae_tiling)
        host.node_text_sender(cls.hidden.unique_id)(f"Stage {stage}, VAE decode: {plan.text}")
        return io.NodeOutput(image, ui=_saved(image, stage, cls) if save else ui.PreviewImage(_small(image), cls=cls))


def _saved(image: Tensor, stage: int, cls: Any) -> Any:
    """As Save Image saves it, the workflow in its metadata."""
    _, height, width, _ = image.shape
    return ui.ImageSaveHelper.get_save_images_ui(image, f"CLEAR_stage_{stage}_{width}x{height}", cls)


def _small(image: Tensor) -> Tensor:
    """For the node: a picture of 16384 pixels takes minutes to write and to show."""
    scale = _PREVIEW / max(image.shape[1:3])
    if scale >= 1:
        return image
    return interpolate(image.movedim(-1, 1), scale_factor=scale, mode="area").movedim(1, -1)


def _vae_inputs() -> list[io.Input]:
    return [
        make(io.Vae.Input, "vae", tooltip="As linked to the upscale."),
        make(io.Combo.Input, "vae_tiling", options=list(TILINGS), default=AUTO, tooltip="As on the upscale."),
        make(io.Int.Input, "stage", default=1, min=1, tooltip="Number of the stage."),
    ]
