"""A forward of the host's FLUX in bands: cut what goes in, run the host's own forward on each, join what comes out.

Positions come from the whole image: the host is asked for them once, up to the point where its `post_input` patches
have run, so that a patch which shifts or scales them by the image's size does what it would do without bands.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ldm.common_dit
import comfy.model_management
import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.run import Stream
from ....clear_core.bands.workers import Anchor, Worker
from ...options.bands import BandSettings
from ..attention_call import BANDS, FRAME, SETTINGS, STEP, Frame
from ..flux_model import CHROMA, transformer_of
from ..node_text import messenger, name_of
from .attend import BandStep
from .memory import fitting_count, free_bytes, shape_for_estimate, shape_of
from .progress import Begin, Moved, band_progress
from .replicas import Lane, Replicas, preflight

_log = logging.getLogger("clear-attention")


@dataclass(frozen=True, slots=True, eq=False)
class _Positions:
    """Of the whole sequence, after every patch: ids [batch, tokens, axes] of the text and of image and references."""

    text: Tensor
    image: Tensor


class _Found(BaseException):
    """Ends the forward that is only asked for its positions."""


def bands_wrapper(
    settings: BandSettings, replicas: Replicas, say: Callable[[str], None], begin: Begin | None
) -> Callable[..., Any]:
    """The DIFFUSION_MODEL wrapper. say: tells the node how the forward was cut. begin: shows how far it is."""

    def clear_bands(
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = {},
        **kwargs: Any,
    ) -> Any:
        inner = executor.wrappers[executor.idx + 1 :]
        if inner:
            # Every other wrapper must see the whole image: this one goes last.
            moved = WrapperExecutor.new_class_executor(executor.original, executor.class_obj, [*inner, clear_bands])
            return moved.execute(x, timestep, context, y, guidance, ref_latents, control, transformer_options, **kwargs)
        clear = transformer_options.get(SETTINGS)
        if clear is None:
            raise ValueError("CLEAR Multi-GPU works on a model with CLEAR: connect Apply CLEAR Attention before it.")
        flux = executor.class_obj
        frame = transformer_options[FRAME]  # Apply CLEAR Attention's own wrapper has run: this one goes last
        lanes = replicas.lanes(flux, x.device)
        window, factor = clear.band_window(active=frame.active), clear.down_factor if frame.active else 1
        shares = [lane.share for lane in lanes]

        def plan_of(count: int) -> BandPlan:
            return BandPlan.cut(frame.image, count, window, down_factor=factor, shares=shares)

        shape = shape_of(flux, x.element_size())
        count = settings.bands or fitting_count(
            plan_of, len(lanes), free_bytes(lanes), context.shape[1], shape, x.shape[0]
        )
        plan = plan_of(count)
        if len(plan.bands) == 1:
            return executor(x, timestep, context, y, guidance, ref_latents, control, transformer_options, **kwargs)
        moved = begin(plan, len(flux.double_blocks) + len(flux.single_blocks)) if begin is not None else None
        replicas.follow_hooks()
        forward = _Forward(executor, frame, transformer_options, kwargs.pop("attention_mask", None), moved)
        stream = Stream(plan, [lane.device for lane in lanes], settings.text_merge)
        # Workers that hand each other the turn are beyond torch.compile; it would try, and give up on each of them.
        run: Any = torch.compiler.disable(forward.run)
        out = run(stream, lanes, x, timestep, context, y, guidance, ref_latents, control, kwargs)
        say(_described(settings, plan, lanes, stream, replicas.missing(x.device)))
        return out

    return clear_bands


def apply_bands(model: Any, settings: BandSettings, *, node_id: str | None) -> Any:
    """A clone of `model` whose forwards run in bands; the last node that asks for bands decides."""
    family = transformer_of(model)[1]
    if family == CHROMA:
        raise ValueError(
            f"CLEAR Multi-GPU works on FLUX models; this one is {family}, whose forward cannot be cut. Remove the node."
        )
    patched = model.clone()
    replicas = Replicas(settings.devices)
    say = _once(messenger(node_id))
    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.PREPARE_SAMPLING):
        patched.remove_wrappers_with_key(kind, BANDS)
    wrapper = bands_wrapper(settings, replicas, say, band_progress(node_id))
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, BANDS, wrapper)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, BANDS, _prepare_wrapper(settings, replicas))
    return patched


def sample_in_bands(
    noise: Any, guider: Any, sampler: Any, sigmas: Any, latent: Any, settings: BandSettings, *, node_id: str | None
) -> Any:
    """What the core's SamplerCustomAdvanced gives for a guider like this one over a model that runs in bands."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    banded = copy.copy(guider)
    banded.model_patcher = apply_bands(guider.model_patcher, settings, node_id=node_id)
    banded.model_options = banded.model_patcher.model_options
    return SamplerCustomAdvanced.execute(noise, banded, sampler, sigmas, latent)


def _prepare_wrapper(settings: BandSettings, replicas: Replicas) -> Callable[..., Any]:
    def clear_prepare(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(model, shape_for_estimate(model, noise_shape, settings), conds, *args, **kwargs)
        made = replicas.prepare(model)
        if made:
            comfy.model_management.load_models_gpu(made)
            flux, home = model.get_model_object("diffusion_model"), torch.device(model.load_device)
            _log.info("CLEAR Multi-GPU: %s", preflight(replicas.lanes(flux, home)))
        return out

    return clear_prepare


def _once(show: Callable[[str], None]) -> Callable[[str], None]:
    """Shows a text only when it differs from the last one."""
    shown: list[str] = []

    def say(text: str) -> None:
        if shown != [text]:
            shown[:] = [text]
            show(text)

    return say


def _described(
    settings: BandSettings, plan: BandPlan, lanes: Sequence[Lane], stream: Stream, missing: Sequence[str]
) -> str:
    """What the node shows."""
    heights = sorted({len(rows) for rows in plan.bands})
    rows = f"{heights[0]}" if len(heights) == 1 else f"{heights[0]} to {heights[-1]}"
    devices = ", ".join(str(lane.device) for lane in lanes[: plan.lane_count])
    lines = [f"{len(plan.bands)} bands of {rows} rows of tokens on {devices}"]
    if missing:
        lines.append(f"not in this machine: {', '.join(missing)}")
    if plan.lane_count > 1:
        sent = stream.traffic
        total = (sent.halo + sent.text + sent.pooled) / 2**20
        lines.append(f"{total:.1f} MB handed over in each step; text merged: {settings.text_merge}")
    return "\n".join(lines)


class _Forward:
    """One forward, cut."""

    def __init__(
        self, executor: Any, frame: Frame, options: Mapping[str, Any], mask: Tensor | None, moved: Moved | None
    ) -> None:
        self._original = executor.original
        self._flux = executor.class_obj
        self._frame = frame
        self._options = options
        self._mask = mask
        self._moved = moved
        self._local = threading.local()
        for kind, patches in (options.get("patches") or {}).items():
            if kind != "post_input" and patches:
                raise ValueError(
                    f"CLEAR cannot cut the image into bands under a patch of kind {kind!r} ({name_of(patches[0])}). "
                    "Remove the node that brings it, or use one band."
                )

    def run(
        self,
        stream: Stream,
        lanes: Sequence[Lane],
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None,
        guidance: Tensor | None,
        ref_latents: list[Tensor] | None,
        control: Any,
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        patch = self._flux.patch_size
        height, width = x.shape[-2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(x, (patch, patch))
        positions = self._positions(x, timestep, context, y, guidance, ref_latents, kwargs)
        given, grid = (timestep, y, guidance), self._frame.image

        def call(
            step: Anchor | Worker, x: Tensor, context: Tensor, references: Any, control: Any, spans: list[slice]
        ) -> Any:
            device, flux = lanes[step.lane].device, lanes[step.lane].flux
            timestep, y, guidance = (_on(device, tensor) for tensor in given)
            # Each worker is a thread of its own, so this is its alone.
            self._local.spans = spans
            self._local.ids = torch.cat([positions.image[:, span] for span in spans], dim=1)
            options = self._options_of(step, positions.text)
            x, context = _on(device, x), _on(device, context)
            forward = getattr(flux, self._original.__name__)
            return forward(x, timestep, context, y, guidance, references, control, options, **kwargs)

        def anchor(step: Anchor) -> Tensor:
            spans = [slice(0, 1), slice(grid.tokens, positions.image.shape[1])]
            return call(step, torch.zeros_like(x[..., :patch, :patch]), context, ref_latents, None, spans)

        def band(step: Worker) -> Tensor:
            tokens = slice(step.rows.start * grid.width, step.rows.stop * grid.width)
            part = x[..., step.rows.start * patch : step.rows.stop * patch, :]
            residuals = _control_of(control, tokens, lanes[step.lane].device)
            return call(step, part, context[:, :1], None, residuals, [tokens])

        with self._embedders(lanes, positions):
            parts = stream.run(anchor, band)
        out = torch.cat([part.to(x.device) for part in parts], dim=-2)
        return out[..., :height, :width]

    def _options_of(self, step: Anchor | Worker, text_ids: Tensor) -> dict[str, Any]:
        """The host's options for one worker: blocks that pause, positions of its own."""
        patches = {**(self._options.get("patches") or {})}
        patches["post_input"] = [*patches.get("post_input", ()), self._placed(step, text_ids)]
        replace = {kind: dict(found) for kind, found in (self._options.get("patches_replace") or {}).items()}
        blocks = replace.setdefault("dit", {})
        last: dict[str, Any] = {}
        moved = partial(self._moved, step.band) if self._moved is not None and isinstance(step, Worker) else None
        for kind, modules in (("double_block", self._flux.double_blocks), ("single_block", self._flux.single_blocks)):
            for index in range(len(modules)):
                blocks[kind, index] = _pausing(step, (kind, index), blocks.get((kind, index)), last, moved)
        return {
            **self._options,
            "patches": patches,
            "patches_replace": replace,
            STEP: BandStep(step, self._mask),
        }

    def _placed(self, step: Anchor | Worker, text_ids: Tensor) -> Callable[[dict[str, Any]], dict[str, Any]]:
        grid = self._frame.image
        references = sum(reference.tokens for reference in self._frame.references)
        want = 1 + references if isinstance(step, Anchor) else len(step.rows) * grid.width

        def place(args: dict[str, Any]) -> dict[str, Any]:
            if args["img"].shape[1] != want:
                raise ValueError(
                    f"CLEAR cannot cut the image into bands: another node changes the number of image tokens "
                    f"({args['img'].shape[1]} for {want}). Remove it, or use one band."
                )
            device, text = args["img"].device, args["txt"].shape[1]
            return {**args, "img_ids": self._local.ids.to(device), "txt_ids": text_ids[:, :text].to(device)}

        return place

    def _positions(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None,
        guidance: Tensor | None,
        ref_latents: list[Tensor] | None,
        kwargs: Mapping[str, Any],
    ) -> _Positions:
        found: list[_Positions] = []

        def stop(args: dict[str, Any]) -> dict[str, Any]:
            found.append(_Positions(args["txt_ids"], args["img_ids"]))
            raise _Found

        patches = {**(self._options.get("patches") or {})}
        patches["post_input"] = [*patches.get("post_input", ()), stop]
        options = {**self._options, "patches": patches}
        with suppress(_Found):
            self._original(x, timestep, context, y, guidance, ref_latents, None, options, **kwargs)
        return found[0]

    @contextmanager
    def _embedders(self, lanes: Sequence[Lane], positions: _Positions) -> Iterator[None]:
        """Where another node replaced the positions' embedder: ask it once for the whole image, then cut.

        It may derive its scale from the span of the positions that it is given (DyPE does).
        """
        own = self._flux.pe_embedder
        if type(own) is EmbedND:
            yield
            return
        cut = _CutPositions(own(torch.cat((positions.text, positions.image), dim=1)), positions, self._local)
        models = {id(lane.flux): (lane.flux, lane.flux.pe_embedder) for lane in lanes}.values()
        try:
            for flux, _ in models:
                flux.pe_embedder = cut
            yield
        finally:
            for flux, embedder in models:
                flux.pe_embedder = embedder


class _CutPositions(torch.nn.Module):
    """Stands in for a model's embedder while it runs in bands: the whole image's answer, cut for each worker."""

    def __init__(self, whole: Tensor, positions: _Positions, local: threading.local) -> None:
        super().__init__()
        self._whole, self._local = whole, local
        self._text = positions.text.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        spans: list[slice] = self._local.spans
        image = [self._whole[:, :, self._text + span.start : self._text + span.stop] for span in spans]
        text = ids.shape[1] - sum(part.shape[2] for part in image)
        return torch.cat((self._whole[:, :, :text], *image), dim=2).to(ids.device)


def _pausing(
    step: Anchor | Worker,
    block: tuple[str, int],
    other: Callable[..., Any] | None,
    last: dict[str, Any],
    moved: Callable[[], None] | None,
) -> Callable[..., Any]:
    """A block replacement that lets the others have their turn, then does what would have been done.

    last: this worker's answer of the block before, the same dict for all its blocks. moved: told of each that is done.
    """

    def pausing_block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # The host has read the last block's answer but still holds it: an image's worth of memory between the
        # double and the single blocks.
        last.clear()
        step.at_block(block)
        out = extra["original_block"](args) if other is None else other(args, extra)
        last.update(out)
        if moved is not None:
            moved()
        return last

    return pausing_block


def _control_of(control: Any, tokens: slice, device: torch.device) -> Any:
    """ControlNet residuals, lists of [batch, image tokens, channels] or None, for some of the tokens."""
    if control is None:
        return None
    return {
        name: [None if residual is None else _on(device, residual[:, tokens]) for residual in residuals]
        for name, residuals in control.items()
    }


def _on(device: torch.device, tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.to(device)
