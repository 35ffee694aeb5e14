"""CLEAR 4K / 8K: MODEL -> MODEL with everything that CLEAR needs for a large image, chosen by a preset."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.hub.released import find
from ..clear_core.weights import read_weights
from . import host
from .band_inputs import devices_input
from .options.clear import ApplyInputs, resolve_settings
from .options.presets import DEFAULT, PRESETS, TIME_SHIFT, Preset, resolve_preset
from .schema import CACHED_PER_NODE_ID, CATEGORY, make


class CLEARPreset(io.ComfyNode):
    """Load CLEAR Weights, Apply CLEAR Attention, ModelSamplingFlux and CLEAR Multi-GPU in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make(
            io.Schema,
            node_id="CLEARPreset",
            display_name="CLEAR 4K / 8K",
            category=CATEGORY,
            description="Prepares FLUX for large images in one node: loads the distilled weights, applies the "
            "attention window and splits the image into bands where memory requires it. Any sampler node may follow.",
            search_aliases=[
                *("clear", "4k", "8k", "16k", "flux 4k", "flux 8k", "high resolution", "hires fix", "highres fix"),
                *("linear attention", "low vram", "preset", "one node"),
            ],
            inputs=_inputs(),
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=CACHED_PER_NODE_ID,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None, devices: str | None = None) -> bool | str:
        # None: the value comes through a link and is not known yet; `execute` checks it.
        try:
            resolve_preset(DEFAULT if preset is None else preset, "auto" if devices is None else devices)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, preset: str, **inputs: Any) -> str:
        # A file replaced under the same name is read again.
        return host.file_fingerprint(PRESETS[preset].weights) if preset in PRESETS else ""

    @classmethod
    def execute(cls, model: Any, preset: str, devices: str) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        chosen, bands = resolve_preset(preset, devices)
        kind = host.model_kind(model)
        # Before anything is downloaded.
        if host.has_clear(model):
            raise ValueError(
                f"CLEAR is already applied to this model, and CLEAR 4K / 8K ({preset}) applies it itself. Connect the "
                "model from before the other node, or remove one of the two."
            )
        weights = read_weights(host.fetched_weights(chosen.weights, node_id=node_id)) if kind.has_weights else None
        settings = resolve_settings(weights, ApplyInputs(radius=0 if weights else _radius(chosen)))
        text = host.NodeTextParts(host.node_text_sender(node_id), 3)
        shifted, shift = host.shifted(model, TIME_SHIFT)
        text.part(0)(f"{preset}: {chosen.reason}; {shift}")
        patched, _ = host.apply_clear(shifted, settings, weights, text.part(1), preset=preset)
        if kind.can_be_cut:
            patched = host.apply_bands(patched, bands, node_id=node_id, show=text.part(2))
        return io.NodeOutput(patched)


def _radius(preset: Preset) -> int:
    """The radius of the preset's weights, for a model that has none."""
    released = find(preset.weights)
    assert released is not None
    return released.radius


def _inputs() -> list[io.Input]:
    """The inputs in their released order: saved workflows keep values by position, so add at the end only."""
    lines = "".join(f"\n{name}: {preset.reason}, {preset.weights}" for name, preset in PRESETS.items())
    return [
        make(
            io.Model.Input,
            "model",
            tooltip="A FLUX.1 model: dev, schnell, Krea, Fill, Canny, Depth or Kontext, with or without LoRAs. FLUX.2 "
            "and Chroma get the attention window without weights.",
        ),
        make(
            io.Combo.Input,
            "preset",
            options=list(PRESETS),
            default=DEFAULT,
            tooltip=f"What matters most. Weights that are not in models/clear are downloaded (3.6 GB).{lines}",
        ),
        devices_input(),
    ]
