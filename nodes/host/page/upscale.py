"""The plan of an upscale as its panel draws it: the stages' sizes, and for each its bands, memory and VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....clear_core.bands.memory import ModelShape
from ...options.bands import BandSettings
from ...options.clear import ClearSettings
from ...options.stages import Stage
from ..machine import MachineDevice
from ..vae import VaePlan
from .payloads import Payload, bands_payload


def upscale_payload(
    source: tuple[int, int],
    stages: Sequence[Stage],
    clear: ClearSettings,
    settings: BandSettings,
    machine: Sequence[MachineDevice],
    shape: ModelShape,
    vae: Callable[[int, int], VaePlan],
) -> Payload:
    """source: the image's width and height in pixels. vae: how an image of a width and a height passes it.

    For the rest see `bands_payload`. peak: bytes of one step beside the weights on the device that needs most of its
    memory. free: bytes of that device.
    """
    return {
        "source": list(source),
        "stages": [_stage(stage, clear, settings, machine, shape, vae) for stage in stages],
    }


def _stage(
    stage: Stage,
    clear: ClearSettings,
    settings: BandSettings,
    machine: Sequence[MachineDevice],
    shape: ModelShape,
    vae: Callable[[int, int], VaePlan],
) -> Payload:
    cut = bands_payload(clear, settings, stage.width, stage.height, machine, shape)
    free = {device.name: device.free for device in machine}
    device = max(cut["peaks"], key=lambda name: cut["peaks"][name] / max(1, free[name]))
    plan = vae(stage.width, stage.height)
    return {
        "size": [stage.width, stage.height],
        "bands": len(cut["bands"]),
        "device": device,
        "peak": cut["peaks"][device],
        "free": free[device],
        "vae": {"way": plan.way, "need": plan.need, "room": plan.room},
    }
