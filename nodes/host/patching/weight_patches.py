"""CLEAR's weights among a MODEL's weight patches: over merges of models, below LoRAs.

The host applies a key's patches in the order of their list: W = kept W + strength d, where a merge keeps a share of
what stands before it. So the order decides what a patch means:

    merges, which make the model's own weight     W1 -> 0.6 W1 + 0.4 W2
    CLEAR's part of the layer                     W -> (1 - s) W + s W_clear
    additions, such as LoRAs                      W -> W + 0.8 B A
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ....clear_core.weights import ClearWeights, block_of_key
from ...options.blocks import BlockChoice

Entry = tuple[Any, ...]
"""The host's: strength of the patch, the patch, share kept of the weight, offset (dim, start, length), function."""
Key = str | tuple[Any, ...]
Patches = Mapping[Key, tuple[str, tuple[Tensor]]]


def distilled_patches(flux: Any, weights: ClearWeights, chosen: BlockChoice) -> Patches:
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
    names = host_keys(flux, "diffusion_model.")
    return {
        _unsmoothed(flux, names[key]): ("diff", (tensor,))
        for key, tensor in weights.attention.items()
        if block_of_key(key) in chosen
    }


def host_keys(flux: Any, prefix: str) -> Mapping[str, Key]:
    """By diffusers key, the host's key: of a tensor, or with the offset (dim, start, length) in a fused one."""
    blocks = {"depth": len(flux.double_blocks), "depth_single_blocks": len(flux.single_blocks)}
    return comfy.utils.flux_to_diffusers({**blocks, "hidden_size": flux.hidden_size}, output_prefix=prefix)


def blend_in(model: Any, patches: Patches, strength: float) -> int:
    """Put the distilled weights over the merges of a MODEL and below its other patches.

    A LoRA that went into a merge keeps the share of it that the merge gave it. Returns the number of the layers'
    tensors that are merged. Raises ValueError where the model lacks a layer, or a patch cannot be placed.
    """
    if not patches:
        return 0
    taken = model.add_patches(dict(patches), strength_patch=strength, strength_model=1.0 - strength)
    refused = [key for key in patches if key not in set(taken)]
    if refused:
        raise ValueError(f"The model has no layer for {len(refused)} of CLEAR's tensors, the first is {refused[0]}.")
    added: dict[str, int] = {}
    for key in taken:
        name = key if isinstance(key, str) else key[0]
        added[name] = added.get(name, 0) + 1
    merged = 0
    for name, count in added.items():
        entries = model.patches[name]
        merges, additions = _sorted(entries[:-count], name)
        model.patches[name] = [*merges, *entries[-count:], *additions]
        merged += any(map(_has_effect, merges))
    return merged


def merged_over(model: Any, patches: Patches) -> int:
    """How many of the tensors that CLEAR's patches change a later patch of a MODEL mixes or replaces."""
    own = {id(patch) for patch in patches.values()}
    return sum(_is_mixed(entries, own) for entries in model.patches.values())


def _is_mixed(entries: Sequence[Entry], own: set[int]) -> bool:
    last = max((index for index, entry in enumerate(entries) if id(entry[1]) in own), default=None)
    return last is not None and any(_is_merge(entry) and _has_effect(entry) for entry in entries[last + 1 :])


def _sorted(entries: Iterable[Entry], name: str) -> tuple[list[Entry], list[Entry]]:
    """Merges and additions that together make the same weight, where additions do not depend on it, as LoRAs do not."""
    merges: list[Entry] = []
    additions: list[Entry] = []
    for entry in entries:
        if not _is_merge(entry):
            additions.append(entry)
            continue
        strength, patch, kept, offset, *rest = entry
        share = 0.0 if _kind(patch) == "set" else kept
        additions = [_shared(each, share, offset, name) for each in additions]
        if isinstance(patch, list) and offset is None:
            # Another model's weight, followed by the patches which that model had.
            inner, its_own = _sorted(patch[1:], name)
            additions += [_shared(each, strength, None, name) for each in its_own]
            patch = [patch[0], *inner]
        merges.append((strength, patch, kept, offset, *rest))
    return merges, list(filter(_has_effect, additions))


def _has_effect(entry: Entry) -> bool:
    strength, patch, kept, *_ = entry
    return strength != 0 or kept != 1 or _kind(patch) == "set"


def _is_merge(entry: Entry) -> bool:
    """Whether a patch makes another model's weight of a weight; False for what is added to it or only scales it."""
    strength, patch, kept, *_ = entry
    if isinstance(patch, list):
        return True
    kind = _kind(patch)
    return kind == "set" or (kind == "diff" and strength != 0 and kept != 1)


def _kind(patch: Any) -> str:
    """The host's name of a patch's kind; "" for an adapter, such as a LoRA's."""
    if not isinstance(patch, tuple):
        return ""
    return "diff" if len(patch) == 1 else str(patch[0])


def _shared(entry: Entry, share: float, offset: Any, name: str) -> Entry:
    """An addition of which a later merge keeps a share. offset: the part of the layer that is merged, None for all."""
    strength, patch, kept, own, *rest = entry
    if offset is not None and own != offset:
        if own is not None and (own[0] != offset[0] or not _overlap(own, offset)):
            return entry
        raise ValueError(
            f"{name} has a patch that merges only a part of the layer, after one that changes more of it, such as a "
            "LoRA. Connect Apply CLEAR Attention before the node that merges, or the LoRA after it."
        )
    return (strength * share, patch, kept, own, *rest)


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[1] < other[1] + other[2] and other[1] < one[1] + one[2]


def _unsmoothed(flux: Any, key: Key) -> Key:
    """A key whose patch is divided by the layer's `pre_quant_scale`, where its file has one.

    Such a layer multiplies its input by that scale [channels] (AWQ smoothing) and its weight was divided by it.
    """
    name, offset = (key, None) if isinstance(key, str) else (key[0], key[1])
    path, _, end = name.removeprefix("diffusion_model.").rpartition(".")
    module = flux
    for part in path.split("."):
        module = getattr(module, part, None)
    scale = getattr(module, "pre_quant_scale", None) if end == "weight" else None
    if scale is None:
        return key
    if not bool(torch.isfinite(scale).all() and (scale != 0).all()):
        raise ValueError(
            f"The model's file has a pre_quant_scale of 0, infinity or NaN in {path}: no other weights fit into that "
            "layer. Choose another file of this model."
        )
    return (name, offset, _divided(scale.detach().float().cpu()))


def _divided(scale: Tensor) -> Callable[[Tensor], Tensor]:
    def divide(part: Tensor) -> Tensor:
        return part / scale.to(part)

    return divide
