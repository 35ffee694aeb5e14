"""Attention calls of some blocks, read from a forward of the host's FLUX as a sampler would run it.

The forward stops at the last of these blocks; the layers before it run as the model's own nodes have them, or dense.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...clear_core.layout import Grid, TokenLayout
from ...clear_core.weights import BlockId
from ..options.clear import ClearSettings
from .attention_call import FRAME, KEY, OVERRIDE, SETTINGS, HostAttentionCall, frame_of
from .bands.forward import BANDS
from .flux_model import transformer_of
from .overrides import forward_owner

_OBSERVER = "clear_observer"

Read = Callable[[HostAttentionCall, TokenLayout], None]
"""Gets an attention call, with a frame and a block, and its tokens; a batch also holds what else positive brings."""


@dataclass(slots=True, eq=False)
class _Forward:
    """What the hooks of one forward share. wanted: the blocks that are still to be read.

    owner: the pack whose forward the model had, "" for ComfyUI's.
    """

    wanted: set[BlockId]
    read: Read
    owner: str = ""


class _StopForward(BaseException):
    """Ends the forward once all is read."""


class Observed:
    """A MODEL over a LATENT, whose attention calls are read at some noise levels. The model stays as it was.

    Bands are left out: they would split the keys. dense: every layer runs dense, whatever window the model has.
    Raises ValueError for a model or latent that cannot be read, naming it and what is allowed.
    """

    def __init__(self, model: Any, positive: Sequence[Any], latent: Mapping[str, Any], *, dense: bool = False) -> None:
        self.transformer, self.family = transformer_of(model)
        if not positive:
            raise ValueError("positive is empty: connect a prompt, such as the output of CLIP Text Encode.")
        self.samples = _samples(model, latent)
        self.image: Grid = frame_of(self.transformer, self.samples, None, {}).image
        self.banded = bool(model.get_wrappers(WrappersMP.DIFFUSION_MODEL, BANDS))
        self._model, self._positive, self._latent, self._dense = model, positive, latent, dense

    @property
    def settings(self) -> ClearSettings | None:
        """Of Apply CLEAR Attention; None where it is not in the chain."""
        return self._model.model_options["transformer_options"].get(SETTINGS)

    def sigma(self, percent: float) -> float:
        """The noise level at a point of the schedule, 0 to 1."""
        return float(self._model.get_model_object("model_sampling").percent_to_sigma(percent))

    @torch.no_grad()
    def forward(self, percent: float, seed: int, blocks: Collection[BlockId], read: Read) -> None:
        """Noise the latent to a point of the schedule, run the model, and hand over each of the blocks' calls once.

        Raises ValueError where a block does not run its attention or it is not the joint attention of FLUX.
        """
        forward = _Forward(set(blocks), read)
        watched = self._model.clone()
        for kind, key in (
            (WrappersMP.DIFFUSION_MODEL, BANDS),
            (WrappersMP.PREPARE_SAMPLING, BANDS),
            (WrappersMP.OUTER_SAMPLE, KEY),  # one forward is not a sampling run to report
        ):
            watched.remove_wrappers_with_key(kind, key)
        options = watched.model_options["transformer_options"]
        options[OVERRIDE] = self._override(forward, options.get(OVERRIDE))
        watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _OBSERVER, self._wrapper(forward))
        self._run(watched, self.sigma(percent), seed)
        if forward.wanted:
            missing = min(forward.wanted, key=lambda block: (block.kind, block.index))
            raise ValueError(
                f"block {block_name(missing)} did not run its attention at {percent:g} of the "
                "schedule: either positive has no part of the prompt for this time, or "
                f"{f'the forward of {forward.owner}' if forward.owner else 'another node'} skips or replaces the "
                "block. Remove that node or choose another percent or block."
            )

    def _run(self, model: Any, sigma: float, seed: int) -> None:
        """One call of the model through the host's guider, with conditioning, hooks and ControlNets as in sampling."""

        def once(model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], **_: Any) -> Tensor:
            model(x, sigmas[0] * x.new_ones(x.shape[0]), **extra_args)
            return x

        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": self._positive})
        index, mask = (self._latent.get(name) for name in ("batch_index", "noise_mask"))
        guider.sample(
            comfy.sample.prepare_noise(self.samples, seed, None if index is None else index[:1]),
            self.samples,
            comfy.samplers.KSAMPLER(once),
            torch.tensor([sigma, 0.0]),
            denoise_mask=None if mask is None else mask[:1],
            disable_pbar=True,
            seed=seed,
        )

    def _wrapper(self, forward: _Forward) -> Callable[..., Any]:
        """The DIFFUSION_MODEL wrapper: passes the token grids to the override; ends the forward when all is read."""
        channels = self.samples.shape[1]

        def clear_observer(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
            forward.owner = forward_owner(executor.class_obj)
            call = inspect.signature(executor.original).bind(*args, **kwargs)
            arguments = call.arguments
            options = arguments.get("transformer_options") or {}
            frame = frame_of(executor.class_obj, arguments["x"], arguments.get("ref_latents"), options)
            if frame.image != self.image:
                raise ValueError(
                    f"positive is limited to a part of the image ({frame.image} of {self.image} tokens), so no query "
                    "of it attends to the rest. Connect conditioning without an area; a mask is fine."
                )
            arguments["transformer_options"] = {**options, FRAME: frame}
            nothing = torch.zeros_like(arguments["x"][:, :channels])
            if not forward.wanted:
                return nothing
            try:
                return executor(*call.args, **call.kwargs)
            except _StopForward:
                return nothing

        return clear_observer

    def _override(self, forward: _Forward, previous: Callable[..., Any] | None) -> Callable[..., Any]:
        """The attention override: reads the blocks that are wanted, then leaves all to whoever had them before."""

        def clear_observing(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
            comfy.model_management.throw_exception_if_processing_interrupted()
            call = HostAttentionCall(func, q, k, v, heads, args, kwargs)
            if call.frame is not None and call.block in forward.wanted:
                forward.read(call, _layout(call))
                forward.wanted.discard(call.block)
                if not forward.wanted:
                    raise _StopForward
            if call.frame is not None and self._dense:
                options = {**call.options, FRAME: replace(call.frame, active=False)}
                call = replace(call, kwargs={**kwargs, "transformer_options": options})
            return call.dense(previous)

        return torch.compiler.disable(clear_observing)


def check_block(transformer: Any, block: BlockId) -> None:
    """Raises ValueError for a block that a model does not have."""
    depth = (len(transformer.double_blocks), len(transformer.single_blocks))
    if block.index >= depth[block.kind == "single"]:
        raise ValueError(
            f"block is {block_name(block)}; this model has {depth[0]} double and {depth[1]} single blocks: d0 to "
            f"d{depth[0] - 1} and s0 to s{depth[1] - 1}."
        )


def block_name(block: BlockId) -> str:
    """As the node's input is written: d3, s12."""
    return f"{block.kind[0]}{block.index}"


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


def _layout(call: HostAttentionCall) -> TokenLayout:
    """The token layout of an attention call. Raises ValueError where it is not the joint attention of FLUX."""
    assert call.frame is not None
    if call.unknown or not call.is_joint or call.text_tokens(call.frame) < 0:
        raise ValueError(
            f"The attention of this layer cannot be read: {call.unknown or 'it is not the joint attention of FLUX'}."
        )
    return call.layout(call.frame)
