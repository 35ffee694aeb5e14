"""Apply CLEAR to a MODEL: what it must be, its weights, its positions, its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP

from ....clear_core.flux import CHROMA, FAMILIES, FLUX_1
from ....clear_core.pooling import mean_weight
from ....clear_core.weights import ClearWeights
from ...options.clear import ClearSettings
from ..attention_call import KEY, OVERRIDE, POOLING, SETTINGS, Pooling
from ..flux_model import transformer_of
from ..node_text import origin_of
from ..run_log import RunLog
from ..run_record import record_wrapper
from .hooks import attention_override, frame_wrapper, run_wrapper, schedule_wrapper
from .positions import EMBEDDER, stretched_embedder
from .weight_patches import Patches, blend_in, distilled_patches


def apply_clear(
    model: Any, settings: ClearSettings, weights: ClearWeights | None, show: Callable[[str], None], **facts: Any
) -> tuple[Any, RunLog]:
    """A clone of `model` with CLEAR attention; the input and its other clones stay as they were.

    show: takes the text about what CLEAR did, such as `node_text_sender` gives. facts: more for the record of each run.

    Everything is checked before the clone is touched. Raises ValueError with what to do.
    """
    flux, family = transformer_of(model)
    if weights is not None and settings.strength > 0 and weights.family != family:
        own = f", or connect weights that were distilled for {family}" if family in FAMILIES else ""
        raise ValueError(
            f"{weights.name} was distilled for {weights.family} and this model is {family}. Disconnect weights and set "
            f"radius: the window alone works, experimentally{own}."
        )
    options = model.model_options.get("transformer_options", {})
    if KEY in options:
        raise ValueError(
            f"CLEAR is already applied to this model ({_one_line(options[KEY])}). Connect the model from before the "
            "first Apply CLEAR Attention node, or remove one of the two nodes."
        )
    settings.blocks.check_depth(len(flux.double_blocks), len(flux.single_blocks))
    patches: Patches = {}
    if weights is not None and settings.strength > 0:
        patches = distilled_patches(flux, weights, settings.blocks)
    embedder = stretched_embedder(model, settings.ntk_factor)

    patched = model.clone()
    merged = blend_in(patched, patches, settings.strength)
    if embedder is not None:
        patched.add_object_patch(EMBEDDER, embedder)
    options = patched.model_options["transformer_options"]
    previous = options.get(OVERRIDE)
    run_log = RunLog(_headline(settings, weights, previous, family, merged=merged > 0), show)
    pooling = _pooling_weights(settings, weights)
    override = options[OVERRIDE] = attention_override(settings, pooling, run_log, previous)
    options[KEY], options[SETTINGS], options[POOLING] = run_log.headline, settings, pooling
    # The first is the outermost: it reads what the run log has counted when the run is over.
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, record_wrapper(settings, weights, run_log, **facts))
    run = run_wrapper(run_log, patches, can_be_cut=family != CHROMA)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, run)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, schedule_wrapper(settings, run_log))
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, frame_wrapper(settings, run_log, override, embedder))
    run_log.announce()
    return patched, run_log


def _one_line(text: str) -> str:
    return text.replace("\n", "; ")


def _pooling_weights(settings: ClearSettings, weights: ClearWeights | None) -> Pooling | None:
    """Each block's pooling weight [f, f], blended with the mean by strength; None without down-sampling."""
    if settings.down_factor == 1:
        return None
    mean = mean_weight(settings.down_factor)
    if not _own_pooling(settings, weights):
        return lambda block: mean
    assert weights is not None
    blended = {block: mean.lerp(weight, settings.strength) for block, weight in weights.spatial.items()}
    return lambda block: blended[block]


def _own_pooling(settings: ClearSettings, weights: ClearWeights | None) -> bool:
    return weights is not None and settings.down_factor > 1 and weights.variant.down_factor == settings.down_factor


def _headline(
    settings: ClearSettings,
    weights: ClearWeights | None,
    previous: Callable[..., Any] | None,
    family: str,
    *,
    merged: bool,
) -> str:
    radius = f"radius {settings.window.radius}"
    lines = [f"{radius}, {weights.name}" if weights is not None else f"{radius}, window only, untrained weights"]
    if family != FLUX_1 and weights is None:
        lines.append(f"experimental: {family}, which was not trained for a window")
    if weights is not None and settings.strength < 1:
        lines[0] += f" at strength {settings.strength:g}"
    if weights is not None and weights.variant.radius not in (None, settings.window.radius):
        lines.append(f"the weights were trained with radius {weights.variant.radius}")
    if merged:
        what = "replace the merge" if settings.strength == 1 else "are blended into the merge"
        lines.append(f"merged model: in the distilled layers CLEAR's weights {what}")
    if settings.down_factor > 1:
        kind = "learned" if _own_pooling(settings, weights) else "mean"
        lines.append(f"down-sampled {settings.down_factor} x {settings.down_factor} ({kind} pooling)")
    elif weights is not None and weights.variant.down_factor > 1:
        lines.append(f"without the down-sampled tokens ({weights.variant.down_factor}) the weights were trained with")
    if not settings.blocks.everything:
        lines.append(f"in blocks {settings.blocks.text}; the others dense, with the model's own weights")
    if previous is not None:
        lines.append(f"calls that CLEAR does not handle go to {origin_of(previous)}")
    return "\n".join(lines)
