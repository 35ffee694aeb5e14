"""One call of the host's attention as CLEAR sees it, and the forward that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from torch import Tensor

from ...clear_core.layout import Grid, TokenLayout
from ...clear_core.weights import BlockId

KEY = "clear_attention"
BANDS = "clear_bands"
OVERRIDE = "optimized_attention_override"
# In transformer_options: the node's settings and its pooling weights, the forward's frame, whether the window is on in
# this step, and the worker of a forward that runs in bands.
SETTINGS, POOLING, FRAME, ACTIVE, STEP = (KEY + end for end in ("_settings", "_pooling", "_frame", "_active", "_step"))
Pooling = Callable[[BlockId], Tensor]
"""A block's pooling weight, [f, f]."""

# Arguments of the host's attention that change nothing here: they say how, not what. Grouped queries (enable_gqa) have
# fewer heads in the keys, which is no joint attention; with as many heads they are the usual ones.
_HARMLESS = frozenset(
    {"attn_precision", "enable_gqa", "low_precision_attention", "transformer_options", "_inside_attn_wrapper"}
)
_NAMES = frozenset({"block_type", "block_index"})
_HANDLED = frozenset({"mask", "skip_reshape", "skip_output_reshape"})


@dataclass(frozen=True, slots=True)
class Frame:
    """One forward of the model: the grids of its latent and reference latents, and whether the window is on."""

    image: Grid
    references: tuple[Grid, ...]
    active: bool


def frame_of(flux: Any, x: Tensor, ref_latents: Sequence[Tensor] | None, options: Mapping[str, Any]) -> Frame:
    """The frame of a forward of the host's FLUX, from its arguments. Raises ValueError for an empty latent."""
    if x.numel() == 0:
        raise ValueError(
            f"The latent to be sampled is empty: its shape is {tuple(x.shape)}. Check the node that makes it."
        )
    patch = flux.patch_size
    references = tuple(_grid(latent, patch) for latent in ref_latents or ())
    return Frame(_grid(x, patch), references, options.get(ACTIVE, True))


def _grid(latent: Tensor, patch: int) -> Grid:
    """A latent's token grid: [batch, channels, height, width], padded up to complete patches by the host."""
    return Grid(-(-latent.shape[-2] // patch), -(-latent.shape[-1] // patch))


@dataclass(frozen=True, slots=True, eq=False)
class HostAttentionCall:
    """What the host passes to the override of its attention.

    function: the host's own attention. query, key, value: [batch, heads, tokens, head_dim] where `is_joint`.
    args, kwargs: everything after `heads`.
    """

    function: Callable[..., Tensor]
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def options(self) -> Mapping[str, Any]:
        return self.kwargs.get("transformer_options") or {}

    @property
    def frame(self) -> Frame | None:
        """The forward it belongs to; None for a model without CLEAR."""
        return self.options.get(FRAME)

    @property
    def block(self) -> BlockId:
        return block_of(self.options)

    @property
    def mask(self) -> Tensor | None:
        """The host's mask, [batch, heads, queries, keys], each size 1 or full."""
        return full_mask(self.kwargs.get("mask"))

    @property
    def unknown(self) -> str:
        """Arguments that may change the result in ways CLEAR does not know, in a clause; "" for none."""
        return unknown_arguments(self.args, self.kwargs)

    @property
    def scale_gain(self) -> float:
        """The caller's factor on the scores over the usual 1/sqrt(head_dim); 1 where it gave none."""
        scale = self.kwargs.get("scale")
        return 1.0 if scale is None else float(scale) * sqrt(self.query.shape[-1])

    @property
    def is_joint(self) -> bool:
        """Whether it has the form of FLUX's joint attention: heads split, queries and keys from the same tokens."""
        return bool(self.kwargs.get("skip_reshape")) and self.query.ndim == 4 and self.query.shape == self.key.shape

    def text_tokens(self, frame: Frame) -> int:
        """What is left besides the image and the references; negative where the call is of something else."""
        return self.query.shape[-2] - TokenLayout(0, frame.image, frame.references).tokens

    def refusal(self, frame: Frame) -> str:
        """Why CLEAR cannot compute this call over the complete sequence, in a clause; "" where it can."""
        # Bands, which have no place for a scale, ask for `unknown`.
        unknown = unknown_arguments(self.args, {name: self.kwargs[name] for name in self.kwargs if name != "scale"})
        if unknown:
            return unknown
        if not self.options.keys() >= _NAMES:
            return "the model's forward does not say which block attends (block_type, block_index): another pack's"
        if self.is_joint and self.text_tokens(frame) >= 0:
            return ""
        queries, keys = self.query.shape[-2], self.key.shape[-2]
        return f"an attention of {queries} queries over {keys} keys is not FLUX's joint attention"

    def layout(self, frame: Frame) -> TokenLayout:
        """Which tokens these are. The text is counted per call: other nodes may append tokens."""
        return TokenLayout(self.text_tokens(frame), frame.image, frame.references)

    def shaped(self, out: Tensor) -> Tensor:
        """A result [batch, tokens, heads * head_dim] as the host wants it."""
        if self.kwargs.get("skip_output_reshape"):
            return out.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return out

    def dense(self, previous: Callable[..., Tensor] | None, gain: float = 1.0) -> Tensor:
        """The same call by an earlier override or the host itself. gain: what the queries are multiplied by."""
        query = self.query * gain if gain != 1.0 else self.query
        if previous is not None:
            return previous(self.function, query, self.key, self.value, self.heads, *self.args, **self.kwargs)
        return self.function(query, self.key, self.value, self.heads, *self.args, **self.kwargs)


def unknown_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What the host passed that may change the result in ways CLEAR does not know, in a clause; "" for nothing."""
    known = _HARMLESS | _HANDLED
    odd = [name for name, value in kwargs.items() if name not in known and value is not None and value is not False]
    if not args and not odd:
        return ""
    what = ", ".join(odd) or "positional arguments"
    return f"the host passed attention arguments this version of CLEAR does not know ({what})"


def block_of(options: Mapping[str, Any]) -> BlockId:
    """The block that is attending. Raises ValueError where the model's forward, another pack's, does not say it."""
    if not options.keys() >= _NAMES:
        raise ValueError(
            "The model's forward does not say which block attends (block_type, block_index in transformer_options). It "
            "is another pack's, or another pack calls the blocks: remove its node or update it."
        )
    return BlockId(options["block_type"], options["block_index"])


def full_mask(mask: Tensor | None) -> Tensor | None:
    """The host's mask with batch and heads spelled out, as its own attention reads it."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]
