"""The arguments of the page's requests: which there are, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....clear_core.weights import ClearWeights, Variant, parse_weights, read_header, variant_from_name
from ...options.clear import ApplyInputs, ClearSettings, resolve_settings
from ...options.lanes import AUTO as AUTO_DEVICES
from ...options.presets import resolve_preset
from ...options.stages import LARGEST_SIDE
from ...options.target import MEGAPIXELS, Target
from ...options.vae import AUTO
from ..files import weights_path

Query = Mapping[str, str]
Kind = type[int] | type[float] | type[str] | type[bool]
Arguments = dict[str, tuple[Kind, Any]]
"""By name: the type and the default; None for one that must be given."""

# Names and defaults are those of the nodes' widgets; width and height have none.
SIZE: Arguments = {"width": (int, None), "height": (int, None)}
# The widgets of Apply CLEAR Attention on which its picture depends; the page names them alike.
_WIDGETS = (
    *("radius", "down_factor", "backend", "ntk_factor", "proportional_attention"),
    *("start_percent", "end_percent", "blocks"),
)
# preset: of CLEAR 4K / 8K, in place of the others.
CLEAR: Arguments = {
    "weights": (str, ""),
    "preset": (str, ""),
    **{name: (type(getattr(ApplyInputs(), name)), getattr(ApplyInputs(), name)) for name in _WIDGETS},
}
DEVICES: Arguments = {"devices": (str, "auto")}
BANDS: Arguments = {**DEVICES, "bands": (int, 0)}
_TRUTH = {"true": True, "false": False}  # as JavaScript writes them
UPSCALE: Arguments = {
    "target_megapixels": (float, 16.8),
    "stages": (int, 0),
    "size_by": (str, MEGAPIXELS),
    "long_side": (int, Target.long_side),
    "scale": (float, Target.scale),
    "vae_tiling": (str, AUTO),
}
# What a run loads and does: the loader's folder and file, and the steps of the sampler; 0 for unknown.
LOADED: Arguments = {"folder": (str, "diffusion_models"), "model": (str, ""), "dtype": (str, "")}
RUN: Arguments = {**LOADED, "steps": (int, 0), "banded": (int, 0)}
_LONGEST = 2000  # characters of one value


class BadRequest(ValueError):
    """A request that cannot be read; the text says which argument and why."""


def read_values(query: Query, known: Arguments) -> dict[str, Any]:
    """Every known argument, read, or its default. Raises BadRequest for one that is unknown, missing or unreadable."""
    for name in query:
        if name not in known:
            raise BadRequest(f"unknown argument {name[:40]!r}; known are: {', '.join(known) or 'none'}")
    found = {}
    for name, (kind, default) in known.items():
        text = query.get(name)
        if text is None and default is None:
            raise BadRequest(f"{name} is missing")
        if text is not None and len(text) > _LONGEST:
            raise BadRequest(f"{name} is longer than {_LONGEST} characters")
        try:
            found[name] = default if text is None else _read(kind, text)
        except ValueError:
            what = "neither true nor false" if kind is bool else "not a number"
            raise BadRequest(f"{name} is {str(text)[:40]!r}, which is {what}") from None
    return found


def _read(kind: Kind, text: str) -> Any:
    """Raises ValueError for a text that is none of its kind."""
    if kind is not bool:
        return kind(text)
    if text not in _TRUTH:
        raise ValueError(text)
    return _TRUTH[text]


def size_of(values: Mapping[str, Any]) -> tuple[int, int]:
    for name in ("width", "height"):
        if not 1 <= values[name] <= LARGEST_SIDE:
            raise BadRequest(f"{name} is {values[name]}; allowed is 1 to {LARGEST_SIDE} pixels")
    return values["width"], values["height"]


def applied(values: Mapping[str, Any]) -> tuple[ClearWeights | None, ApplyInputs]:
    """The weights' name and variant, and the inputs, of Apply CLEAR Attention or of what CLEAR 4K / 8K stands for."""
    if values["preset"]:
        values = {**read_values({}, CLEAR), "weights": resolve_preset(values["preset"], AUTO_DEVICES)[0].weights}
    name = values["weights"]
    file = ClearWeights(name, _variant(name), {}, {}, (0, 0)) if name else None
    return file, ApplyInputs(**{name: values[name] for name in _WIDGETS})


def settings_of(values: Mapping[str, Any]) -> ClearSettings:
    return resolve_settings(*applied(values))


def _variant(name: str) -> Variant:
    """By the file's name, which tells that of a released one before it is here; else by its header."""
    known = variant_from_name(name)
    if known is None:
        known = parse_weights(*read_header(weights_path(name)), name).variant
    return known
