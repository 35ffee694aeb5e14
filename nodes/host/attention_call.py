"""One forward of the host's FLUX as CLEAR sees it, and what the host says to its attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...clear_core.layout import Grid
from ...clear_core.weights import BlockId

KEY = "clear_attention"
BANDS = "clear_bands"
OVERRIDE = "optimized_attention_override"
# In transformer_options: the node's settings and its pooling weights, the forward's frame, whether the window is on in
# this step, and the worker of a forward that runs in bands.
SETTINGS, POOLING, FRAME, ACTIVE, STEP = (KEY + end for end in ("_settings", "_pooling", "_frame", "_active", "_step"))
Pooling = Callable[[BlockId], Tensor]
"""A block's pooling weight, [f, f]."""

# Arguments of the host's attention that change nothing here: they say how, not what.
_HARMLESS = frozenset({"attn_precision", "low_precision_attention", "transformer_options", "_inside_attn_wrapper"})
_HANDLED = frozenset({"mask", "skip_reshape", "skip_output_reshape"})


@dataclass(frozen=True, slots=True)
class Frame:
    """One forward of the model: the grids of its latent and reference latents, and whether the window is on."""

    image: Grid
    references: tuple[Grid, ...]
    active: bool


def frame_of(flux: Any, x: Tensor, ref_latents: Sequence[Tensor] | None, options: Mapping[str, Any]) -> Frame:
    """The frame of a forward of the host's FLUX, from its arguments. Raises ValueError for a latent of nothing."""
    if x.numel() == 0:
        raise ValueError(
            f"The latent that is to be sampled holds no image: its shape is {tuple(x.shape)}. "
            "Look at the node that makes it."
        )
    patch = flux.patch_size
    references = tuple(_grid(latent, patch) for latent in ref_latents or ())
    return Frame(_grid(x, patch), references, options.get(ACTIVE, True))


def _grid(latent: Tensor, patch: int) -> Grid:
    """A latent's token grid: [batch, channels, height, width], padded up to whole patches by the host."""
    return Grid(-(-latent.shape[-2] // patch), -(-latent.shape[-1] // patch))


def unknown_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What the host passed that may change the result in ways CLEAR does not know, in a clause; "" for nothing."""
    known = _HARMLESS | _HANDLED
    odd = [name for name, value in kwargs.items() if name not in known and value is not None and value is not False]
    if not args and not odd:
        return ""
    what = ", ".join(odd) or "positional arguments"
    return f"the host passed attention arguments this version of CLEAR does not know ({what})"


def shaped(out: Tensor, heads: int, kwargs: Mapping[str, Any]) -> Tensor:
    """The result as the host asked for it."""
    return out.unflatten(2, (heads, -1)).transpose(1, 2) if kwargs.get("skip_output_reshape") else out


def block_of(options: Mapping[str, Any]) -> BlockId:
    """The block that is attending."""
    return BlockId(options["block_type"], options["block_index"])


def full_mask(mask: Tensor | None) -> Tensor | None:
    """The host's mask with batch and heads spelled out, as its own attention reads it."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]
