"""CLEAR Multi-GPU: MODEL -> MODEL whose forwards run in bands of rows, over devices or on one to save memory."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .options.bands import MAX_BANDS, TEXT_MERGES, check_bands, resolve_bands
from .schema import CATEGORY, SPEAKS_ON_ITS_NODE, make


class CLEARMultiGPU(io.ComfyNode):
    """Any sampler node may follow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARMultiGPU",
            display_name="CLEAR Multi-GPU",
            category=CATEGORY,
            description="Cuts the image into bands of rows that several GPUs share, or that one GPU takes one after "
            "another to save memory. The picture stays the same.",
            search_aliases=["clear", "tiled", "multi gpu", "low vram", "8k", "16k", "parallel"],
            inputs=[
                make(io.Model.Input, "model", tooltip="A FLUX.1 model that Apply CLEAR Attention has patched."),
                *band_inputs(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=SPEAKS_ON_ITS_NODE,
        )

    @classmethod
    def validate_inputs(
        cls, devices: str | None = None, bands: int | None = None, text_merge: str | None = None
    ) -> bool | str:
        return problem(devices, bands, text_merge)

    @classmethod
    def execute(cls, model: Any, devices: str, bands: int, text_merge: str) -> io.NodeOutput:
        settings = resolve_bands(devices, bands, text_merge)
        return io.NodeOutput(host.apply_bands(model, settings, node_id=cls.hidden.unique_id))


def band_inputs() -> list[io.Input]:
    """The three inputs that say how to cut, in their released order; the sampler node has them too."""
    return [
        make(
            io.String.Input,
            "devices",
            default="auto",
            tooltip="Who shares the image. auto: all GPUs of this machine. Or names: cuda:0,cuda:1. With shares of the "
            "rows: cuda:0=2,cuda:1=1. A device that is not here is left out, and the node says so.",
        ),
        make(
            io.Int.Input,
            "bands",
            default=0,
            min=0,
            max=MAX_BANDS,
            tooltip="Into how many bands of rows the image is cut. 0: one for each device, or more where memory asks "
            "for it. More bands than devices save memory: 64 for 8192 px.",
        ),
        make(
            io.Combo.Input,
            "text_merge",
            options=list(TEXT_MERGES),
            default="exact",
            advanced=True,
            tooltip="How the text's view of the image is put together. exact: as on one device. average: the paper's "
            "approximation, for comparison.",
        ),
    ]


def problem(devices: str | None, bands: int | None, text_merge: str | None) -> bool | str:
    """True, or what is wrong with the inputs when a prompt is queued; None is a value that comes through a link."""
    try:
        check_bands(devices, bands, text_merge)
    except ValueError as error:
        return str(error)
    return True
