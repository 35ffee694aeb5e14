"""What runs inside the host's forward: three wrappers and the attention override."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....clear_core.attention import local_attention
from ....clear_core.backends import AUTO, BackendError
from ....clear_core.call import DEFAULT_BUDGET, CallError
from ....clear_core.layout import Grid, TokenLayout
from ....clear_core.pattern import LocalPattern
from ....clear_core.pooling import Pooled, pool_key_value
from ....clear_core.scale import proportional_gain, softmax_scale
from ...options.clear import ClearSettings
from ..attention_call import ACTIVE, FRAME, STEP, HostAttentionCall, Pooling
from ..bands.attend import attend_in_bands
from ..forward_args import ForwardArgs
from ..retry import is_out_of_memory, with_less_memory
from ..run_log import RunLog
from .compiled import explained
from .out_of_memory import advise
from .positions import check_positions, note_size, stretched_for
from .takeover import TALLY, Tally
from .weight_patches import Patches, merged_over


def run_wrapper(run_log: RunLog, patches: Patches, *, can_be_cut: bool) -> Callable[..., Any]:
    """The OUTER_SAMPLE wrapper. patches: CLEAR's weights. can_be_cut: whether the model's forward can run in bands."""

    def clear_run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        run_log.begin()
        mixed = merged_over(executor.class_obj.model_patcher, patches)
        if mixed:
            run_log.note(_MERGED_OVER.format(mixed))
        finished = False
        try:
            out = executor(noise, *args, **kwargs)
            finished = True
            return out
        except Exception as error:
            if is_out_of_memory(error):
                advise(run_log, executor.class_obj.model_patcher, noise.shape, can_be_cut=can_be_cut)
            raise
        finally:
            run_log.end(finished=finished)

    return clear_run


_MERGED_OVER = (
    "a merge of models after this node changed {} tensors that hold CLEAR's weights: these are part of the merge, not "
    "CLEAR's alone. Put Apply CLEAR Attention after the merge to have them in full"
)

_HOOKS_LOST = (
    "LoRAs from hooks have no full effect on offloaded layers: ComfyUI applies them before the CLEAR weights are "
    "blended in. Load those LoRAs with LoRA loader nodes, or free memory so that the model fits completely"
)


_APPLY_MODEL = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")


def schedule_wrapper(settings: ClearSettings, run_log: RunLog) -> Callable[..., Any]:
    """The APPLY_MODEL wrapper: whether the window is on in this step, and which layers came to it."""

    def clear_schedule(executor: Any, *args: Any, **kwargs: Any) -> Any:
        given, base = ForwardArgs.of(executor.original, args, kwargs, _APPLY_MODEL), executor.class_obj
        patcher = getattr(base, "current_patcher", None)
        if getattr(patcher, "current_hooks", None) is not None and getattr(base, "lowvram_patch_counter", 0):
            run_log.note(_HOOKS_LOST)
        # Asked here, not when the node ran: a node further down may have changed the schedule.
        active = settings.whole_schedule or _in_range(settings, base.model_sampling, float(given.get("t").max()))
        options, tally = given.options, Tally()
        changed = given.replaced(transformer_options={**options, ACTIVE: active, TALLY: tally})
        try:
            out = changed.call(executor)
        except Exception as error:
            told = explained(error)
            if told is error:
                raise
            raise told from error
        tally.report(run_log, base.diffusion_model, options)
        return out

    return clear_schedule


def _in_range(settings: ClearSettings, sampling: Any, sigma: float) -> bool:
    """Whether a noise level lies between start_percent and end_percent of the schedule."""
    after = settings.start_percent <= 0 or sigma <= float(sampling.percent_to_sigma(settings.start_percent))
    return after and (settings.end_percent >= 1 or sigma >= float(sampling.percent_to_sigma(settings.end_percent)))


def frame_wrapper(
    settings: ClearSettings, run_log: RunLog, own: Callable[..., Any], embedder: Any = None
) -> Callable[..., Any]:
    """The DIFFUSION_MODEL wrapper: the grids of this forward, and what other packs have put into the model.

    own: CLEAR's override. embedder: CLEAR's, where `ntk_factor` is set and not 1.
    """

    def look_around(transformer: Any, options: Mapping[str, Any], image: Grid) -> None:
        tally: Tally = options.get(TALLY) or Tally()
        run_log.forward(tally.forward(transformer, options, own))
        check_positions(transformer, embedder, settings.ntk_factor, run_log)
        note_size(transformer, settings, image, run_log)

    # It asks where functions come from, which torch.compile would try to trace.
    look: Any = torch.compiler.disable(look_around)

    def clear_frame(executor: Any, *args: Any, **kwargs: Any) -> Any:
        given, transformer = ForwardArgs.of(executor.original, args, kwargs), executor.class_obj
        frame = given.frame(transformer)
        look(transformer, given.options, frame.image)
        sized = given.replaced(transformer_options={**given.options, FRAME: frame})
        factor = settings.ntk_at(frame.image) if settings.by_size else 1.0
        if factor == 1.0:
            return sized.call(executor)
        with stretched_for(transformer, factor):
            return sized.call(executor)

    return clear_frame


def attention_override(
    settings: ClearSettings,
    pooling: Pooling | None,
    run_log: RunLog,
    previous: Callable[..., Any] | None,
) -> Callable[..., Any]:
    @lru_cache(maxsize=4)  # image sizes in turn, as in stages
    def pattern_of(layout: TokenLayout, cells: int) -> LocalPattern:
        """One object for all layers: it remembers their plans and launches, which a new one would look for again."""
        return LocalPattern.whole(layout, settings.window, references=settings.references, pooled=cells)

    def clear_attention(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        # Steps at high resolution are long: look for a cancelled prompt in every layer.
        comfy.model_management.throw_exception_if_processing_interrupted()
        call = HostAttentionCall(func, q, k, v, heads, args, kwargs)
        tally: Tally | None = call.options.get(TALLY)
        if call.frame is not None:
            run_log.called()
            if tally is not None:
                tally.layer(call.options)
        if call.frame is not None and call.options.get(STEP) is not None:
            return attend_in_bands(settings, pooling, run_log, call, call.options[STEP])
        outcome = _attend(settings, pooling, pattern_of, run_log, call)
        if isinstance(outcome, Tensor):
            return outcome
        if outcome.reason:
            run_log.dense(outcome.reason, asked=outcome.asked)
        return call.dense(previous, outcome.gain)

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
    pattern_of: Callable[[TokenLayout, int], LocalPattern],
    run_log: RunLog,
    call: HostAttentionCall,
) -> Tensor | _Dense:
    """One layer through the window, or why not."""
    frame = call.frame
    if frame is None:
        return _Dense()
    refusal = call.refusal(frame)
    if refusal:
        return _Dense(refusal)
    layout = call.layout(frame)
    gain = proportional_gain(layout.tokens) if settings.proportional_at(frame.image) else 1.0
    asked = settings.left_dense(call.block, active=frame.active)
    if asked:
        return _Dense(asked, asked=True, gain=gain)
    pooled = None if pooling is None else _pooled(call, layout, pooling(call.block))
    try:
        pattern = pattern_of(layout, 0 if pooled is None else pooled.tokens)
        return _attend_locally(settings, run_log, call, pattern, pooled)
    except CallError as error:
        return _Dense(str(error), gain=gain)
    except BackendError as error:
        if settings.backend != AUTO:
            raise
        return _Dense(str(error), gain=gain)


def _attend_locally(
    settings: ClearSettings, run_log: RunLog, call: HostAttentionCall, pattern: LocalPattern, pooled: Pooled | None
) -> Tensor:
    """The call's result through the window. Raises CallError or BackendError where no backend can compute it."""
    layout = pattern.layout
    scale = call.scale_gain * softmax_scale(
        call.query.shape[-1],
        layout.tokens,
        proportional=settings.proportional_at(layout.image),
        down_factor=settings.down_factor,
    )
    mask = call.mask
    out, _, choice = with_less_memory(
        lambda budget: local_attention(
            call.query,
            call.key,
            call.value,
            pattern,
            scale=scale,
            pooled=pooled,
            mask=mask,
            backend=settings.backend,
            budget=budget,
        ),
        DEFAULT_BUDGET,
        run_log,
    )
    run_log.local(f"{choice.backend.name} ({layout}; {choice.reason})")
    return call.shaped(out)


def _pooled(call: HostAttentionCall, layout: TokenLayout, weight: Tensor) -> Pooled:
    """The image's down-sampled keys and values."""
    image = slice(layout.text, layout.text + layout.image.tokens)
    return pool_key_value(call.key[:, :, image], call.value[:, :, image], layout.image, weight)
