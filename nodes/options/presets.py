"""The presets of CLEAR 4K / 8K: which weights and how many bands each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...clear_core.backends import AUTO
from ...clear_core.flux import token_grid
from ...clear_core.show.cost import BAND_ROWS
from .bands import BandSettings
from .clear import ApplyInputs
from .lanes import parse_devices
from .limits import one_of

TIME_SHIFT = 1.1
"""ln 3: the fixed time shift of the authors' recipe, whatever the size."""
DEFAULT = "balanced"


@dataclass(frozen=True, slots=True)
class Preset:
    """weights: a released file, whose radius is used. rows: of tokens in a band; 0 for as many as memory allows.

    reason: what it is for, a clause.
    """

    weights: str
    reason: str
    rows: int = 0


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset("clear_local_8.safetensors", "smallest window"),
        DEFAULT: Preset("clear_local_16.safetensors", "the window that suits most images"),
        "detail": Preset("clear_local_32.safetensors", "largest window, closest to full attention"),
        "memory saver": Preset("clear_local_8.safetensors", f"smallest window, bands of {BAND_ROWS} rows", BAND_ROWS),
    }
)


def resolve_preset(name: str, devices: str) -> tuple[Preset, BandSettings]:
    """A preset and its bands. Raises ValueError naming the value, what is allowed and what to do."""
    one_of("preset", name, PRESETS)
    preset = PRESETS[name]
    return preset, BandSettings(parse_devices(devices), 0, "exact", rows=preset.rows)


def single_nodes(name: str, devices: str, width: int, height: int) -> list[dict[str, object]]:
    """The nodes that a preset stands for, in the order of the model's way, each with the values of its widgets.

    width, height: of the image in pixels, for the number of bands. Raises ValueError as `resolve_preset`.
    """
    preset, bands = resolve_preset(name, devices)
    apply = ApplyInputs()
    return [
        {"type": "CLEARWeightsLoader", "widgets": {"weights_name": preset.weights}},
        {
            "type": "CLEARApply",
            "widgets": {"radius": apply.radius, "down_factor": apply.down_factor, "backend": AUTO, "ntk_factor": 0},
        },
        {"type": "ModelSamplingFlux", "widgets": {"max_shift": TIME_SHIFT, "base_shift": TIME_SHIFT}},
        {"type": "CLEARMultiGPU", "widgets": {"devices": devices, "bands": bands.count(token_grid(width, height))}},
    ]
