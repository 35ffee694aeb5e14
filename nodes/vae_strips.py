"""VAE Decode and VAE Encode in strips: exact for FLUX's autoencoder, whatever the size of the image."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .options.lanes import DeviceShare, parse_devices
from .options.limits import within
from .schema import CATEGORY, make

_MOST_STRIPS = 1024
_STRIPS = (
    "Strips of rows that pass one after another. 0: as few as memory allows. The result is the same for any number."
)
_DEVICES = (
    "Devices that share the strips: auto (ComfyUI's own and all other CUDA GPUs), or names such as cuda:0,cuda:1. Each "
    "has a copy of the VAE."
)


class CLEARVAEDecode(io.ComfyNode):
    """The plain decode's image, in the memory of a few rows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARVAEDecode",
            display_name="VAE Decode in Strips",
            category=CATEGORY,
            description="Decodes a latent of any size with the result of VAE Decode: no seams, no change of colour. "
            "What does not fit on the device waits in main memory, and beyond that on disk.",
            search_aliases=["clear", "vae decode", "tiled vae", "vae decode tiled", "8k", "16k", "out of memory"],
            inputs=[
                make(io.Latent.Input, "samples", tooltip="The latent to decode."),
                *_vae_inputs(),
            ],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, strips: int | None = None, devices: str | None = None) -> bool | str:
        return _validated(strips, devices)

    @classmethod
    def execute(cls, samples: Any, vae: Any, strips: int = 0, devices: str = "auto") -> io.NodeOutput:
        image, used = host.vae_decode_strips(vae, samples["samples"], _parsed(devices), strips, preview=True)
        host.node_text_sender(cls.hidden.unique_id)(used.text)
        return io.NodeOutput(image)


class CLEARVAEEncode(io.ComfyNode):
    """The plain encode's latent, in the memory of a few rows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARVAEEncode",
            display_name="VAE Encode in Strips",
            category=CATEGORY,
            description="Encodes an image of any size with the result of VAE Encode. What does not fit on the device "
            "waits in main memory, and beyond that on disk.",
            search_aliases=["clear", "vae encode", "tiled vae", "vae encode tiled", "8k", "16k", "out of memory"],
            inputs=[
                make(io.Image.Input, "pixels", tooltip="The image to encode; alpha is left out."),
                *_vae_inputs(),
            ],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, strips: int | None = None, devices: str | None = None) -> bool | str:
        return _validated(strips, devices)

    @classmethod
    def execute(cls, pixels: Any, vae: Any, strips: int = 0, devices: str = "auto") -> io.NodeOutput:
        latent, used = host.vae_encode_strips(vae, pixels, _parsed(devices), strips)
        host.node_text_sender(cls.hidden.unique_id)(used.text)
        return io.NodeOutput({"samples": latent})


def _vae_inputs() -> list[io.Input]:
    return [
        make(io.Vae.Input, "vae", tooltip="FLUX's VAE, or one of the same blocks (SD 1.5, SDXL, SD 3)."),
        make(io.Int.Input, "strips", default=0, min=0, max=_MOST_STRIPS, tooltip=_STRIPS),
        make(io.String.Input, "devices", default="auto", tooltip=_DEVICES),
    ]


def _validated(strips: int | None, devices: str | None) -> bool | str:
    try:
        if strips is not None:
            within("strips", strips, 0, _MOST_STRIPS)
        if devices is not None:
            _parsed(devices)
    except ValueError as error:
        return str(error)
    return True


def _parsed(devices: str) -> tuple[DeviceShare, ...]:
    found = parse_devices(devices)
    shared = next((device for device in found if device.share is not None), None)
    if shared is not None:
        raise ValueError(
            f"devices gives {shared.name} a share, {shared.share:g}; strips go to the devices in turn. Write the names "
            "alone, or a name twice for twice the strips."
        )
    return found
