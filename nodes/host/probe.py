"""The attention of one query in one layer, read from a forward of the host's FLUX as a sampler would run it.

The forward stops at that layer; the layers before it run as the model's own nodes have them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...clear_core.call import as_bias
from ...clear_core.layout import Grid, TokenLayout
from ...clear_core.pooling import pool
from ...clear_core.weights import BlockId
from ..insight.attention_row import AttentionRow, attention_row
from ..options.clear import USUAL, ClearSettings
from .attention_call import (
    FRAME,
    KEY,
    OVERRIDE,
    POOLING,
    SETTINGS,
    Frame,
    Pooling,
    block_of,
    frame_of,
    full_mask,
    unknown_arguments,
)
from .bands.forward import BANDS
from .flux_model import transformer_of
from .latent_colours import latent_colours
from .overrides import forward_owner

_PROBE = "clear_probe"


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Which query. percent: of the schedule, x, y: of the image, each 0 to 1. head: -1 for the mean of all."""

    block: BlockId
    head: int
    percent: float
    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """What the forward gave. heads: of the model. sigma: the noise level. settings: the model's, or the usual ones.

    patched: whether the model has CLEAR. left_dense: why this layer runs dense all the same, a clause, or "".
    banded: whether CLEAR Multi-GPU is in the chain. picture: the latent in grey, float32 [height, width] of 0 to 1, or
    None where the host has no preview factors for it.
    """

    row: AttentionRow
    family: str
    heads: int
    sigma: float
    settings: ClearSettings
    patched: bool
    left_dense: str
    banded: bool
    picture: Tensor | None


@dataclass(slots=True, eq=False)
class _Probe:
    """What the hooks of one probe share. image: the token grid of the whole latent. row: None until it is read.

    owner: the pack whose forward the model had, "" for ComfyUI's.
    """

    request: ProbeRequest
    settings: ClearSettings
    pooling: Pooling | None
    image: Grid
    row: AttentionRow | None = None
    left_dense: str = ""
    owner: str = ""

    def read(self, frame: Frame, q: Tensor, k: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the row out of one layer's attention call. q, k: [batch, heads, tokens, head_dim], after RoPE."""
        request, grid = self.request, frame.image
        layout = _layout(frame, q, k, args, kwargs)
        # A batch also holds what else positive brings; its first entry is read.
        heads = slice(None) if request.head < 0 else slice(request.head, request.head + 1)
        query, key = q[0, heads], k[0, heads]
        position = (_token(request.y, grid.height), _token(request.x, grid.width))
        index = layout.text + position[0] * grid.width + position[1]
        bias = _bias(kwargs.get("mask"), heads, index, layout)
        pooled = None
        if self.pooling is not None:
            if bias is not None:
                raise ValueError(
                    "The conditioning brings an attention mask, which has no exact meaning for down-sampled tokens. "
                    "Set down_factor of Apply CLEAR Attention to 1."
                )
            image = key[None, :, layout.text : layout.text + grid.tokens]
            pooled = pool(image, grid, self.pooling(request.block))[0]
        self.row = attention_row(query[:, index], key, layout, position, self.settings, bias=bias, pooled=pooled)
        self.left_dense = self.settings.left_dense(request.block, active=frame.active)


class _StopForward(BaseException):
    """Ends the forward once the row is read."""


@torch.no_grad()
def probe_attention(
    model: Any, positive: Sequence[Any], latent: Mapping[str, Any], request: ProbeRequest, *, seed: int
) -> ProbeResult:
    """Run one forward of a MODEL over a LATENT, noised as the request says, up to the requested layer.

    The model stays as it was. Bands are left out: they would split the query's keys.
    Raises ValueError for what this model or latent does not have, naming it and what is allowed.
    """
    flux, family = transformer_of(model)
    depth = (len(flux.double_blocks), len(flux.single_blocks))
    if request.block.index >= depth[request.block.kind == "single"]:
        raise ValueError(
            f"block is {_name(request.block)}; this model has {depth[0]} double and {depth[1]} single blocks: d0 to "
            f"d{depth[0] - 1} and s0 to s{depth[1] - 1}."
        )
    if not -1 <= request.head < flux.num_heads:
        raise ValueError(
            f"head is {request.head}; this model has {flux.num_heads} heads: 0 to {flux.num_heads - 1}, or -1 for the "
            "mean of all."
        )
    if not positive:
        raise ValueError("positive is empty: connect a prompt, such as the output of CLIP Text Encode.")
    samples = _samples(model, latent)
    watched = model.clone()
    banded = bool(model.get_wrappers(WrappersMP.DIFFUSION_MODEL, BANDS))
    for kind, key in (
        (WrappersMP.DIFFUSION_MODEL, BANDS),
        (WrappersMP.PREPARE_SAMPLING, BANDS),
        (WrappersMP.OUTER_SAMPLE, KEY),  # one forward is not a sampling run to report
    ):
        watched.remove_wrappers_with_key(kind, key)
    options = watched.model_options["transformer_options"]
    settings = options.get(SETTINGS) or USUAL
    probe = _Probe(request, settings, options.get(POOLING), frame_of(flux, samples, None, {}).image)
    options[OVERRIDE] = _override(probe, options.get(OVERRIDE))
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _PROBE, _wrapper(probe, samples.shape[1]))
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(request.percent))
    _run(watched, positive, latent, samples, sigma, seed)
    if probe.row is None:
        raise ValueError(
            f"block {_name(request.block)} did not run its attention at {request.percent:g} of the "
            "schedule: either positive has no part of the prompt for this time, or "
            f"{f'the forward of {probe.owner}' if probe.owner else 'another node'} skips or replaces the block. Remove "
            "that node or choose another percent or block."
        )
    return ProbeResult(
        probe.row,
        family,
        flux.num_heads,
        sigma,
        settings,
        SETTINGS in options,
        probe.left_dense,
        banded,
        _picture(model, samples),
    )


def _samples(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """The first image of a LATENT with the model's channels: [1, channels, height, width]."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    channels = model.get_model_object("latent_format").latent_channels
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != channels or samples.numel() == 0:
        raise ValueError(
            f"latent_image has the shape {tuple(samples.shape)}; this model takes [batch, {channels}, height, width]. "
            "Connect a picture that this model's own VAE encoded, or a latent that it sampled."
        )
    return samples[:1]


def _run(
    model: Any, positive: Sequence[Any], latent: Mapping[str, Any], samples: Tensor, sigma: float, seed: int
) -> None:
    """One call of the model through the host's guider: conditioning, hooks, ControlNets and masks as in sampling."""

    def once(model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], **_: Any) -> Tensor:
        model(x, sigmas[0] * x.new_ones(x.shape[0]), **extra_args)
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    index = latent.get("batch_index")
    noise = comfy.sample.prepare_noise(samples, seed, None if index is None else index[:1])
    mask = latent.get("noise_mask")
    guider.sample(
        noise,
        samples,
        comfy.samplers.KSAMPLER(once),
        torch.tensor([sigma, 0.0]),
        denoise_mask=None if mask is None else mask[:1],
        disable_pbar=True,
        seed=seed,
    )


def _wrapper(probe: _Probe, channels: int) -> Callable[..., Any]:
    """The DIFFUSION_MODEL wrapper: passes the token grids to the override, and stops the forward when it is done."""

    def clear_probe(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        probe.owner = forward_owner(executor.class_obj)
        call = inspect.signature(executor.original).bind(*args, **kwargs)
        arguments = call.arguments
        options = arguments.get("transformer_options") or {}
        frame = frame_of(executor.class_obj, arguments["x"], arguments.get("ref_latents"), options)
        if frame.image != probe.image:
            raise ValueError(
                f"positive is limited to a part of the image ({frame.image} of {probe.image} tokens), so no query of "
                "it attends to the rest. Connect conditioning without an area; a mask is fine."
            )
        arguments["transformer_options"] = {**options, FRAME: frame}
        nothing = torch.zeros_like(arguments["x"][:, :channels])
        if probe.row is not None:
            return nothing
        try:
            return executor(*call.args, **call.kwargs)
        except _StopForward:
            return nothing

    return clear_probe


def _override(probe: _Probe, previous: Callable[..., Any] | None) -> Callable[..., Any]:
    """The attention override: reads the requested block, leaves the others to whoever had them before."""

    def clear_probing(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        options = kwargs.get("transformer_options") or {}
        frame = options.get(FRAME)
        if frame is not None and block_of(options) == probe.request.block:
            probe.read(frame, q, k, args, kwargs)
            raise _StopForward
        if previous is not None:
            return previous(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    return torch.compiler.disable(clear_probing)


def _layout(frame: Frame, q: Tensor, k: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TokenLayout:
    """The token layout of an attention call. Raises ValueError where it is not the joint attention of FLUX."""
    text = q.shape[-2] - frame.image.tokens - sum(grid.tokens for grid in frame.references)
    unknown = unknown_arguments(args, kwargs)
    if unknown or not kwargs.get("skip_reshape") or q.ndim != 4 or q.shape != k.shape or text < 0:
        raise ValueError(
            f"The attention of this layer cannot be read: {unknown or 'it is not the joint attention of FLUX'}."
        )
    return TokenLayout(text, frame.image, frame.references)


def _bias(mask: Tensor | None, heads: slice, index: int, layout: TokenLayout) -> Tensor | None:
    """What the host's mask adds to one query's scores: float32 [heads or 1, tokens]."""
    mask = full_mask(mask)
    if mask is None:
        return None
    row = mask[0, heads if mask.shape[1] > 1 else slice(None), index if mask.shape[2] > 1 else 0]
    return as_bias(row, torch.float32).expand(-1, layout.tokens)


def _name(block: BlockId) -> str:
    """As the node's input is written: d3, s12."""
    return f"{block.kind[0]}{block.index}"


def _token(share: float, size: int) -> int:
    return min(int(share * size), size - 1)


def _picture(model: Any, samples: Tensor) -> Tensor | None:
    """What the latent shows, in grey."""
    known = model.get_model_object("latent_format")
    colours = latent_colours(known, known.process_in(samples.float()))
    return None if colours is None else colours.mean(-1)
