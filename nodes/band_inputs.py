"""The inputs that CLEAR Multi-GPU and CLEAR Tiled Multi-GPU Sampler share."""

from __future__ import annotations

from comfy_api.latest import io

from .options.bands import MAX_BANDS, TEXT_MERGES, check_bands
from .options.machines import parse_address
from .schema import make


def band_inputs() -> list[io.Input]:
    """How to split the image, in the released order."""
    return [
        make(
            io.String.Input,
            "devices",
            default="auto",
            tooltip="Devices that compute the image. auto: all GPUs of this machine. Or a list: cuda:0,cuda:1, with "
            "shares of the rows if you like: cuda:0=2,cuda:1=1. Devices that this machine lacks are left out; the node "
            "shows it.",
        ),
        make(
            io.Int.Input,
            "bands",
            default=0,
            min=0,
            max=MAX_BANDS,
            tooltip="Number of bands. 0: one on a single device, four per GPU on several, more if memory requires it. "
            "More bands save memory: 64 for 8192 px.",
        ),
        make(
            io.Combo.Input,
            "text_merge",
            options=list(TEXT_MERGES),
            default="exact",
            advanced=True,
            tooltip="How the attention of the text tokens is merged across bands. exact: as on one device. average: "
            "the paper's approximation, for comparison.",
        ),
    ]


def machines_input() -> io.Input:
    """`machines`, after all others."""
    return make(
        io.String.Input,
        "machines",
        default="",
        optional=True,
        advanced=True,
        tooltip="Empty: this machine alone. Or the address and port of this machine on which others join, such as "
        "192.168.1.10:8189. Each of them runs: python dev.py worker --join 192.168.1.10:8189 --token-file FILE. Those "
        "that would make a step longer are left out; with ' all' behind the address nobody is.",
    )


def devices_input() -> io.Input:
    """`devices` on a node that leaves the other inputs to this pack."""
    return make(
        io.String.Input,
        "devices",
        default="auto",
        advanced=True,
        tooltip="Devices that compute the image, as in CLEAR Multi-GPU. auto: all GPUs of this machine.",
    )


def check_band_inputs(
    devices: str | None, bands: int | None, text_merge: str | None, machines: str | None = None
) -> bool | str:
    """For a node's `validate_inputs`: True, or what is wrong. None: the value comes through a link."""
    try:
        check_bands(devices, bands, text_merge)
        parse_address(machines or "")
    except ValueError as error:
        return str(error)
    return True
