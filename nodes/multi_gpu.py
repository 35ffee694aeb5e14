"""CLEAR Multi-GPU: MODEL -> MODEL whose forwards run in bands of rows, over devices or on one to save memory."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .band_inputs import band_inputs, check_band_inputs, machines_input
from .options.bands import resolve_bands
from .schema import CACHED_PER_NODE_ID, CATEGORY, make


class CLEARMultiGPU(io.ComfyNode):
    """Any sampler node may follow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARMultiGPU",
            display_name="CLEAR Multi-GPU",
            category=CATEGORY,
            description="Splits the image into bands of rows: across several GPUs, or one after another on a single "
            "GPU to save memory. The image stays the same.",
            search_aliases=["clear", "tiled", "multi gpu", "low vram", "4k", "8k", "16k", "parallel"],
            inputs=[
                make(io.Model.Input, "model", tooltip="A FLUX.1 model patched by Apply CLEAR Attention."),
                *band_inputs(),
                machines_input(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            not_idempotent=CACHED_PER_NODE_ID,
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
    def execute(cls, model: Any, devices: str, bands: int, text_merge: str, machines: str = "") -> io.NodeOutput:
        settings = resolve_bands(devices, bands, text_merge)
        node_id, graph = cls.hidden.unique_id, cls.hidden.dynprompt
        session = host.machines_session(machines, graph, node_id, "model", model)
        patched = host.apply_bands(model, settings, node_id=node_id, machines=session)
        # Raised here, ComfyUI's dialog names this node; in the run, it would name the sampler.
        if graph is not None and not host.has_clear(model) and host.no_clear_after(graph, node_id):
            raise ValueError(host.NO_CLEAR)
        return io.NodeOutput(patched)
