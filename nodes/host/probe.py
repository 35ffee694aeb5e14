"""One query of one layer, taken out of a forward of the host's FLUX as a sampler would run it.

The forward ends where the query is found; the layers up to there run as the model's own nodes have them.
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
from ...clear_core.layout import TokenLayout
from ...clear_core.pooling import pool
from ...clear_core.weights import BlockId
from ..insight.probe import Look, look
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

_LOOK = "clear_look"


@dataclass(frozen=True, slots=True)
class Question:
    """Which query. percent: of the schedule, x, y: of the image, each 0 to 1. head: -1 for the mean of all."""

    block: BlockId
    head: int
    percent: float
    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What was found. heads: of the model. sigma: the noise level. settings: the model's, or the usual window's.

    patched: whether the model has CLEAR. left_dense: why this layer runs dense all the same, a clause, or "".
    banded: whether CLEAR Multi-GPU is in the chain. picture: the latent in grey, float32 [height, width] of 0 to 1, or
    None where the host knows no colours for it.
    """

    look: Look
    family: str
    heads: int
    sigma: float
    settings: ClearSettings
    patched: bool
    left_dense: str
    banded: bool
    picture: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    look: Look
    left_dense: str


class _Found(BaseException):
    """Ends the forward: what it was for is known."""


@torch.no_grad()
def ask_attention(
    model: Any, positive: Sequence[Any], latent: Mapping[str, Any], question: Question, *, seed: int
) -> Answer:
    """Run one forward of a MODEL over a LATENT, noised as the question says, up to the layer that it is about.

    The model stays as it was. Bands are left out: they would cut the query's keys apart.
    Raises ValueError for what this model or latent does not have, naming it and what is allowed.
    """
    flux, family = transformer_of(model)
    depth = (len(flux.double_blocks), len(flux.single_blocks))
    if question.block.index >= depth[question.block.kind == "single"]:
        raise ValueError(
            f"block is {_name(question.block)}; this model has {depth[0]} double and {depth[1]} single blocks: d0 to "
            f"d{depth[0] - 1} and s0 to s{depth[1] - 1}."
        )
    if not -1 <= question.head < flux.num_heads:
        raise ValueError(
            f"head is {question.head}; this model has {flux.num_heads} heads: 0 to {flux.num_heads - 1}, or -1 for the "
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
        (WrappersMP.OUTER_SAMPLE, KEY),  # this is no sampling run to report
    ):
        watched.remove_wrappers_with_key(kind, key)
    options = watched.model_options["transformer_options"]
    settings = options.get(SETTINGS) or USUAL
    found: list[_Taken] = []
    options[OVERRIDE] = _override(question, settings, options.get(POOLING), options.get(OVERRIDE), found)
    wrapper = _wrapper(frame_of(flux, samples, None, {}), samples.shape[1], found)
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _LOOK, wrapper)
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(question.percent))
    _run(watched, positive, latent, samples, sigma, seed)
    if not found:
        raise ValueError(
            f"block {_name(question.block)} did not attend at {question.percent:g} of the "
            "schedule: either positive has no part of the prompt for this time, or another node skips or replaces the "
            "block. Remove that node or choose another percent or block."
        )
    return Answer(
        found[0].look,
        family,
        flux.num_heads,
        sigma,
        settings,
        SETTINGS in options,
        found[0].left_dense,
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
    places = latent.get("batch_index")
    noise = comfy.sample.prepare_noise(samples, seed, None if places is None else places[:1])
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


def _wrapper(whole: Frame, channels: int, found: list[_Taken]) -> Callable[..., Any]:
    """The DIFFUSION_MODEL wrapper: says what lies where, and ends the forward once the query is found."""

    def clear_look(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        call = inspect.signature(executor.original).bind(*args, **kwargs)
        given = call.arguments
        options = given.get("transformer_options") or {}
        frame = frame_of(executor.class_obj, given["x"], given.get("ref_latents"), options)
        if frame.image != whole.image:
            raise ValueError(
                f"positive is limited to a part of the image ({frame.image} of {whole.image} tokens), so no query of "
                "it sees the rest. Connect conditioning without an area; a mask is fine."
            )
        given["transformer_options"] = {**options, FRAME: frame}
        nothing = torch.zeros_like(given["x"][:, :channels])
        if found:
            return nothing
        try:
            return executor(*call.args, **call.kwargs)
        except _Found:
            return nothing

    return clear_look


def _override(
    question: Question,
    settings: ClearSettings,
    pooling: Pooling | None,
    previous: Callable[..., Any] | None,
    found: list[_Taken],
) -> Callable[..., Any]:
    def clear_looking(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        options = kwargs.get("transformer_options") or {}
        frame = options.get(FRAME)
        if frame is not None and block_of(options) == question.block:
            found.append(_taken(question, settings, pooling, frame, q, k, args, kwargs))
            raise _Found
        if previous is not None:
            return previous(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    return torch.compiler.disable(clear_looking)


def _taken(
    question: Question,
    settings: ClearSettings,
    pooling: Pooling | None,
    frame: Frame,
    q: Tensor,
    k: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> _Taken:
    text = q.shape[-2] - frame.image.tokens - sum(grid.tokens for grid in frame.references)
    odd = unknown_arguments(args, kwargs)
    if odd or not kwargs.get("skip_reshape") or q.ndim != 4 or q.shape != k.shape or text < 0:
        raise ValueError(
            f"The attention of this layer cannot be read: {odd or 'it is not the joint attention of FLUX'}."
        )
    layout = TokenLayout(text, frame.image, frame.references)
    # A batch holds what else positive asks for; one query is asked for.
    heads = slice(None) if question.head < 0 else slice(question.head, question.head + 1)
    query, key = q[0, heads], k[0, heads]
    grid = frame.image
    place = (_token(question.y, grid.height), _token(question.x, grid.width))
    index = text + place[0] * grid.width + place[1]
    mask = full_mask(kwargs.get("mask"))
    if mask is not None:
        row = index if mask.shape[2] > 1 else 0
        mask = as_bias(mask[0, heads if mask.shape[1] > 1 else slice(None), row], torch.float32)
        mask = mask.expand(-1, layout.tokens)
    cells = None
    if pooling is not None:
        if mask is not None:
            raise ValueError(
                "The conditioning brings an attention mask, which has no exact meaning for down-sampled tokens. Set "
                "down_factor of Apply CLEAR Attention to 1."
            )
        cells = pool(key[None, :, text : text + grid.tokens], grid, pooling(question.block))[0]
    seen = look(query[:, index], key, layout, place, settings, bias=mask, cells=cells)
    return _Taken(seen, settings.left_dense(question.block, active=frame.active))


def _name(block: BlockId) -> str:
    """As a person writes it: d3, s12."""
    return f"{block.kind[0]}{block.index}"


def _token(share: float, size: int) -> int:
    return min(int(share * size), size - 1)


def _picture(model: Any, samples: Tensor) -> Tensor | None:
    """What the latent shows, roughly: by the host's own factors for previews."""
    known = model.get_model_object("latent_format")
    factors, bias = getattr(known, "latent_rgb_factors", None), getattr(known, "latent_rgb_factors_bias", None)
    rearrange = getattr(known, "latent_rgb_factors_reshape", None)
    latent = known.process_in(samples.float())
    if rearrange is not None:
        latent = rearrange(latent)
    if factors is None or len(factors) != latent.shape[1]:
        return None
    colours = torch.einsum("chw,cr->hwr", latent[0].cpu(), torch.tensor(factors)) + torch.tensor(bias or 0.0)
    return ((colours.mean(-1) + 1) / 2).clamp(0, 1)
