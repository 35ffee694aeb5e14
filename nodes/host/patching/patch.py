"""Apply CLEAR to a MODEL: what it must be, its weights, its positions, its hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.utils
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.pooling import mean_weight
from ....clear_core.weights import ClearWeights, block_of_key
from ...options.blocks import BlockChoice
from ...options.clear import ClearSettings
from ..attention_call import KEY, OVERRIDE, POOLING, SETTINGS, Pooling
from ..flux_model import CHROMA, FLUX_1, transformer_of
from ..node_text import node_text_sender, origin_of
from ..run_log import RunLog
from .hooks import attention_override, frame_wrapper, run_wrapper, schedule_wrapper

_EMBEDDER = "diffusion_model.pe_embedder"


def apply_clear(
    model: Any, settings: ClearSettings, weights: ClearWeights | None, *, node_id: str | None
) -> tuple[Any, RunLog]:
    """A clone of `model` with CLEAR attention; the input and its other clones stay as they were.

    Everything is checked before the clone is touched. Raises ValueError with what to do.
    """
    flux, family = transformer_of(model)
    if family != FLUX_1 and weights is not None and settings.strength > 0:
        raise ValueError(
            f"{weights.name} was distilled for FLUX.1 and this model is {family}, for which no weights exist. "
            "Disconnect weights and set radius: the window alone works, experimentally."
        )
    options = model.model_options.get("transformer_options", {})
    if KEY in options:
        raise ValueError(
            f"CLEAR is already applied to this model ({_one_line(options[KEY])}). Connect the model from before the "
            "first Apply CLEAR Attention node, or remove one of the two nodes."
        )
    settings.blocks.check_depth(len(flux.double_blocks), len(flux.single_blocks))
    patches = _weight_patches(flux, weights, settings.blocks) if weights is not None and settings.strength > 0 else {}
    embedder = _embedder(model, settings.ntk_factor)

    patched = model.clone()
    _put_first(patched, patches, settings.strength)
    if embedder is not None:
        patched.add_object_patch(_EMBEDDER, embedder)
    options = patched.model_options["transformer_options"]
    previous = options.get(OVERRIDE)
    run_log = RunLog(_headline(settings, weights, previous, family), node_text_sender(node_id))
    pooling = _pooling_weights(settings, weights)
    options[OVERRIDE] = attention_override(settings, pooling, run_log, previous)
    options[KEY], options[SETTINGS], options[POOLING] = run_log.headline, settings, pooling
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, run_wrapper(run_log, can_be_cut=family != CHROMA))
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, schedule_wrapper(settings, run_log))
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, frame_wrapper(run_log))
    run_log.announce()
    return patched, run_log


def _one_line(text: str) -> str:
    return text.replace("\n", "; ")


def _weight_patches(flux: Any, weights: ClearWeights, chosen: BlockChoice) -> dict[Any, tuple[str, tuple[Tensor]]]:
    """The distilled layers of the chosen blocks under the host's names. Raises ValueError where they do not fit."""
    blocks = (len(flux.double_blocks), len(flux.single_blocks))
    if weights.blocks != blocks:
        raise ValueError(
            f"{weights.name} has {weights.blocks[0]} double and {weights.blocks[1]} single blocks, the model has "
            f"{blocks[0]} and {blocks[1]}. Choose weights made for this model, or the model they were made for."
        )
    for key, tensor in weights.attention.items():
        want = (flux.hidden_size,) * tensor.ndim
        if tuple(tensor.shape) != want:
            raise ValueError(
                f"{weights.name} does not fit this model: {key} has shape {tuple(tensor.shape)}, "
                f"the model needs {want}. Choose weights made for this model."
            )
    config = {"depth": blocks[0], "depth_single_blocks": blocks[1], "hidden_size": flux.hidden_size}
    names = comfy.utils.flux_to_diffusers(config, output_prefix="diffusion_model.")
    return {names[key]: ("diff", (tensor,)) for key, tensor in weights.attention.items() if block_of_key(key) in chosen}


def _put_first(model: Any, patches: Mapping[Any, Any], strength: float) -> None:
    """Blend the distilled weights in before every other patch: W = (1 - s) W + s W_clear, then the LoRAs.

    The host applies a key's patches in list order, so an entry that scales the model down erases what
    stands before it. Ours go first, whichever order the nodes are wired in.
    """
    if not patches:
        return
    taken = model.add_patches(dict(patches), strength_patch=strength, strength_model=1.0 - strength)
    refused = [key for key in patches if key not in set(taken)]
    if refused:
        raise ValueError(f"The model has no layer for {len(refused)} of CLEAR's tensors, the first is {refused[0]}.")
    added: dict[str, int] = {}
    for key in taken:
        name = key if isinstance(key, str) else key[0]
        added[name] = added.get(name, 0) + 1
    for name, count in added.items():
        entries = model.patches[name]
        model.patches[name] = entries[-count:] + entries[:-count]


def _embedder(model: Any, ntk_factor: float) -> Any:
    """The position embedder with theta stretched, or None for a factor of 1."""
    if ntk_factor == 1.0:
        return None
    if _EMBEDDER in model.object_patches:
        other = type(model.object_patches[_EMBEDDER])
        raise ValueError(
            f"ntk_factor is {ntk_factor:g}, but another node already replaced the model's positions "
            f"({other.__module__}.{other.__name__}). Set ntk_factor to 1, or remove that node."
        )
    own = model.get_model_object(_EMBEDDER)
    return type(own)(dim=own.dim, theta=own.theta * ntk_factor, axes_dim=own.axes_dim)


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
    settings: ClearSettings, weights: ClearWeights | None, previous: Callable[..., Any] | None, family: str
) -> str:
    radius = f"radius {settings.window.radius}"
    lines = [f"{radius}, {weights.name}" if weights is not None else f"{radius}, window only, untrained weights"]
    if family != FLUX_1:
        lines.append(f"experimental: {family}, which was not trained for a window")
    if weights is not None and settings.strength < 1:
        lines[0] += f" at strength {settings.strength:g}"
    if weights is not None and weights.variant.radius not in (None, settings.window.radius):
        lines.append(f"the weights were trained with radius {weights.variant.radius}")
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
