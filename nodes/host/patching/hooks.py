"""What runs inside the host's forward: three wrappers and the attention override."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.attention import local_attention
from ....clear_core.backends import AUTO, BackendError
from ....clear_core.call import DEFAULT_BUDGET, CallError
from ....clear_core.layout import TokenLayout
from ....clear_core.pattern import LocalPattern
from ....clear_core.pooling import pool_key_value
from ....clear_core.scale import proportional_gain, softmax_scale
from ...options.clear import ClearSettings
from ..attention_call import (
    ACTIVE,
    FRAME,
    OVERRIDE,
    STEP,
    Frame,
    Pooling,
    block_of,
    frame_of,
    full_mask,
    shaped,
    unknown_arguments,
)
from ..bands.attend import attend_in_bands
from ..node_text import name_of
from ..retry import is_out_of_memory, with_less_memory
from ..run_log import RunReport
from .out_of_memory import advise


def run_wrapper(report: RunReport, *, can_be_cut: bool) -> Callable[..., Any]:
    """The OUTER_SAMPLE wrapper. can_be_cut: whether the model's forward can run in bands."""

    def clear_run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        report.begin()
        finished = False
        try:
            out = executor(noise, *args, **kwargs)
            finished = True
            return out
        except Exception as error:
            if is_out_of_memory(error):
                advise(report, executor.class_obj.model_patcher, noise.shape, can_be_cut=can_be_cut)
            raise
        finally:
            report.end(finished=finished)

    return clear_run


_HOOKS_LOST = (
    "the LoRAs that hooks bring have no full effect on layers that wait outside the card's memory: ComfyUI puts them "
    "in before the model's other weights are blended. Connect those LoRAs with LoRA nodes, or make room for the model"
)


def schedule_wrapper(settings: ClearSettings, report: RunReport) -> Callable[..., Any]:
    def clear_schedule(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = {},
        **kwargs: Any,
    ) -> Any:
        active = True
        if not settings.whole_schedule:
            # Asked here, not when the node ran: a node further down may have changed the schedule.
            sampling = executor.class_obj.model_sampling
            sigma = float(t.max())
            if settings.start_percent > 0:
                active = sigma <= float(sampling.percent_to_sigma(settings.start_percent))
            if settings.end_percent < 1:
                active = active and sigma >= float(sampling.percent_to_sigma(settings.end_percent))
        base = executor.class_obj
        patcher = getattr(base, "current_patcher", None)
        if getattr(patcher, "current_hooks", None) is not None and getattr(base, "lowvram_patch_counter", 0):
            report.note(_HOOKS_LOST)
        options = {**transformer_options, ACTIVE: active}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return clear_schedule


def frame_wrapper(report: RunReport) -> Callable[..., Any]:
    def clear_frame(executor: Any, *args: Any, **kwargs: Any) -> Any:
        # By name: FLUX and Chroma take the same things in another order.
        call = inspect.signature(executor.original).bind(*args, **kwargs)
        given = call.arguments
        options = given.get("transformer_options") or {}
        report.forward(name_of(options.get(OVERRIDE)))
        frame = frame_of(executor.class_obj, given["x"], given.get("ref_latents"), options)
        given["transformer_options"] = {**options, FRAME: frame}
        return executor(*call.args, **call.kwargs)

    return clear_frame


def attention_override(
    settings: ClearSettings,
    pooling: Pooling | None,
    report: RunReport,
    previous: Callable[..., Any] | None,
) -> Callable[..., Any]:
    def clear_attention(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        report.called()
        # Long steps at high resolution: look at every layer whether the person has cancelled.
        comfy.model_management.throw_exception_if_processing_interrupted()
        options = kwargs.get("transformer_options") or {}
        frame = options.get(FRAME)
        if frame is not None and options.get(STEP) is not None:
            return attend_in_bands(settings, pooling, report, frame, options[STEP], q, k, v, heads, args, kwargs)
        outcome = _attend(settings, pooling, report, frame, q, k, v, heads, args, kwargs)
        if isinstance(outcome, Tensor):
            return outcome
        if outcome.reason:
            report.dense(outcome.reason, asked=outcome.asked)
        if outcome.gain != 1.0:
            q = q * outcome.gain
        if previous is not None:
            return previous(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    # torch.compile does the blocks around it; tracing the choice of a backend would only make it compile again.
    return torch.compiler.disable(clear_attention)


@dataclass(frozen=True, slots=True)
class _Dense:
    """A call left to the host. reason: "" for one that is not ours at all. gain: proportional attention."""

    reason: str = ""
    asked: bool = False
    gain: float = 1.0


def _attend(
    settings: ClearSettings,
    pooling: Pooling | None,
    report: RunReport,
    frame: Frame | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor | _Dense:
    """One layer through the window, or why not."""
    if frame is None:
        return _Dense()
    odd = unknown_arguments(args, kwargs)
    if odd:
        return _Dense(odd)
    text = q.shape[-2] - frame.image.tokens - sum(grid.tokens for grid in frame.references)
    if not kwargs.get("skip_reshape") or q.ndim != 4 or q.shape != k.shape or text < 0:
        return _Dense(f"an attention of {q.shape[-2]} queries over {k.shape[-2]} keys is not FLUX's joint attention")
    layout = TokenLayout(text, frame.image, frame.references)
    gain = proportional_gain(layout.tokens) if settings.proportional else 1.0
    block = block_of(kwargs["transformer_options"])
    asked = settings.left_dense(block, active=frame.active)
    if asked:
        return _Dense(asked, asked=True, gain=gain)
    pooled = None
    weight = None if pooling is None else pooling(block)
    if weight is not None:
        image = slice(text, text + frame.image.tokens)
        pooled = pool_key_value(k[:, :, image], v[:, :, image], frame.image, weight)
    cells = 0 if pooled is None else pooled.tokens
    pattern = LocalPattern.whole(layout, settings.window, references=settings.references, pooled=cells)
    scale = softmax_scale(
        q.shape[-1], layout.tokens, proportional=settings.proportional, down_factor=settings.down_factor
    )
    mask = full_mask(kwargs.get("mask"))
    try:
        out, _, choice = with_less_memory(
            lambda budget: local_attention(
                q, k, v, pattern, scale=scale, pooled=pooled, mask=mask, backend=settings.backend, budget=budget
            ),
            DEFAULT_BUDGET,
            report,
        )
    except CallError as error:
        return _Dense(str(error), gain=gain)
    except BackendError as error:
        if settings.backend != AUTO:
            raise
        return _Dense(str(error), gain=gain)
    report.local(f"{choice.backend.name} ({layout}; {choice.reason})")
    return shaped(out, heads, kwargs)
