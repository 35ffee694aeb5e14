"""CLEAR Tiled Multi-GPU Sampler: the core's SamplerCustomAdvanced over a model whose forwards run in bands."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .band_inputs import band_inputs, check_band_inputs, machines_input
from .options.bands import resolve_bands
from .schema import CATEGORY, make


class CLEARTiledSampler(io.ComfyNode):
    """A drop-in for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARTiledSampler",
            display_name="CLEAR Tiled Multi-GPU Sampler",
            category=CATEGORY,
            description="Samples like SamplerCustomAdvanced, with the image split into bands of rows: across several "
            "GPUs, or one after another on a single GPU to save memory. No seams: the image stays the same.",
            search_aliases=["clear", "tiled", "multi gpu", "low vram", "4k", "8k", "16k", "SamplerCustomAdvanced"],
            inputs=[
                make(io.Noise.Input, "noise", tooltip="As in SamplerCustomAdvanced."),
                make(io.Guider.Input, "guider", tooltip="A guider whose model is patched by Apply CLEAR Attention."),
                make(io.Sampler.Input, "sampler", tooltip="As in SamplerCustomAdvanced."),
                make(io.Sigmas.Input, "sigmas", tooltip="As in SamplerCustomAdvanced."),
                make(io.Latent.Input, "latent_image", tooltip="As in SamplerCustomAdvanced."),
                *band_inputs(),
                machines_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="output"),
                io.Latent.Output(display_name="denoised_output"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(
        cls,
        devices: str | None = None,
        bands: int | None = None,
        text_merge: str | None = None,
        machines: str | None = None,
    ) -> bool | str:
        return check_band_inputs(devices, bands, text_merge, machines)

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sampler: Any,
        sigmas: Any,
        latent_image: Any,
        devices: str,
        bands: int,
        text_merge: str,
        machines: str = "",
    ) -> io.NodeOutput:
        settings, node_id = resolve_bands(devices, bands, text_merge), cls.hidden.unique_id
        session = host.guided_session(machines, cls.hidden.dynprompt, node_id, "guider", guider)
        return host.sample_in_bands(
            noise, guider, sampler, sigmas, latent_image, settings, node_id=node_id, machines=session
        )
