"""What must be equal in a MODEL on two machines, and its forward's arguments as tensors that travel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..attention_call import BANDS
from ..forward_args import ForwardArgs

_NAMES = ("x", "timestep", "context", "y", "guidance", "attention_mask")
_KNOWN = frozenset({*_NAMES, "ref_latents", "control", "transformer_options"})


def digest(model: Any) -> str:
    """SHA-256 of a MODEL's type, the names of its weight patches, and the keys of its wrappers and patches; bands are
    left out."""
    options = model.model_options.get("transformer_options", {})
    kinds = [
        f"{kind} {key}"
        for kind, keys in sorted(model.wrappers.items())
        for key in sorted(map(str, keys))
        if key != BANDS
    ]
    patches = [f"{kind} {len(found)}" for kind, found in sorted((options.get("patches") or {}).items())]
    facts = [str(model.model.manual_cast_dtype or model.model.get_dtype()), *sorted(model.patches), *kinds, *patches]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def tensors_of(given: ForwardArgs, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a forward's arguments by name; of lists `name.index`, of ControlNet `control.name.index`.

    Raises ValueError for an argument that cannot travel.
    """
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if value is None or name == "transformer_options":
            continue
        if name not in _KNOWN or (name in _NAMES and not isinstance(value, Tensor)):
            raise ValueError(f"the argument {name} of the model's forward cannot be sent to other machines")
        if isinstance(value, Tensor):
            found[name] = value
    for index, latent in enumerate(given.get("ref_latents") or ()):
        found[f"ref_latents.{index}"] = latent
    for name, residuals in (given.get("control") or {}).items():
        for index, residual in enumerate(residuals):
            if residual is not None:
                found[f"control.{name}.{index}"] = residual
    return found


def arguments_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments again, from what `tensors_of` made of them."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        if not rest:
            found[first] = tensor
        elif first == "ref_latents":
            found.setdefault(first, []).append(tensor)
        else:
            residuals = found.setdefault(first, {}).setdefault(rest[0], [])
            residuals += [None] * (int(rest[1]) - len(residuals))
            residuals.append(tensor)
    return found
