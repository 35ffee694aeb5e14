"""A MODEL's copy for a further device: weights of its own in main memory, the same patches, loaded by the host.

Nothing is put on the device here. ComfyUI's model management does that, once it knows what sampling takes there.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import comfy.model_management
import comfy.utils
import torch

_CPU = torch.device("cpu")
_STAGED = frozenset({"_v", "_v_block", "_v_signature", "_pins", "_pin_state"})
"""What a host with dynamic VRAM notes on a module: handles of native memory, which must have one owner."""
_NATIVE = ("dynamic_pins", "dynamic_vbars", "dynamic_patchers")
"""The same on the model, by device or by patcher."""
_FUNCTIONS = ("weight_function", "bias_function")
_ATOMS = (type(None), bool, int, float, str, bytes, torch.dtype)


def replicate(model: Any, device: torch.device) -> Any:
    """A MODEL like `model` with its own unpatched weights, to be loaded on `device` by `load_models_gpu`.

    Where the host can load the file again (`deepclone_multigpu`, ComfyUI 0.24 and newer, with a loader that supports
    it), the host makes the copy, and unloads `model` for it. Elsewhere the weights are copied to main memory; tensor
    types of other packs and quantised layouts are kept.
    """
    if device.type != "cpu" and hasattr(model, "deepclone_multigpu") and model.cached_patcher_init is not None:
        source = model.clone()
        source.additional_models = {}  # they are loaded once, beside `model`
        replica = source.deepclone_multigpu(new_load_device=device)
    else:
        replica = _around(model, _twin(model), device)
    home = torch.device(model.load_device)
    stays = home.type != "cpu" and torch.device(model.offload_device) == home  # --highvram
    replica.load_device = device
    replica.offload_device = device if stays else _CPU
    if hasattr(replica, "register_load_device"):
        replica.register_load_device(device)
    replica.additional_models = {}
    replica.hook_backup, replica.cached_hook_patches, replica.current_hooks = {}, {}, None
    replica.is_injected = False
    replica.parent = None  # else the host would take the original for it once the replica is gone
    return replica


def match(replica: Any, model: Any) -> None:
    """Give a replica the patches that its original has now; the host applies them when it loads it."""
    replica.patches = {key: list(patches) for key, patches in model.patches.items()}
    replica.patches_uuid = model.patches_uuid
    replica.object_patches = dict(model.object_patches)
    replica.weight_wrapper_patches = dict(model.weight_wrapper_patches)


def _around(model: Any, twin: Any, device: torch.device) -> Any:
    """A patcher like `model`'s around `twin`, which shares nothing of what `model` has saved for its own weights."""
    if hasattr(model, "get_clone_model_override"):
        saved = tuple(type(part)() for part in model.get_clone_model_override()[1])
        static = {"disable_dynamic": True} if device.type == "cpu" and model.is_dynamic() else {}
        return model.clone(model_override=(twin, saved), **static)
    replica = model.clone()
    replica.model = twin
    replica.backup, replica.object_patches_backup, replica.pinned = {}, {}, set()
    return replica


def _twin(model: Any) -> Any:
    """A copy of the model itself with unpatched weights in main memory, as if it had never been loaded."""
    base = model.model
    with ExitStack() as stack:  # what packs inject while a model is loaded, they inject into the copy when that loads
        for loaded in comfy.model_management.loaded_models():
            if loaded is not None and loaded.is_clone(model):
                stack.enter_context(loaded.use_ejected())
        twin = copy.deepcopy(base, _replaced(model))
    for key, value in model.object_patches_backup.items():
        comfy.utils.set_attr(twin, key, copy.deepcopy(value))
    for module in twin.modules():
        _forget_loading(module)
    twin.device = _CPU
    twin.model_loaded_weight_memory = 0
    twin.model_offload_buffer_memory = 0
    twin.model_lowvram = False
    twin.lowvram_patch_counter = 0
    twin.current_weight_patches_uuid = None
    return twin


def _replaced(model: Any) -> dict[int, Any]:
    """What stands in the copy for objects that are not copied as they are; a memo for `copy.deepcopy`."""
    base = model.model
    # Newer hosts' config answers every question, also how it wants to be copied; nothing changes it, so it is shared.
    memo: dict[int, Any] = {id(base.model_config): base.model_config}
    # A patcher that the model refers to is not part of it.
    for outside in (model, getattr(base, "current_patcher", None)):
        if outside is not None:
            memo[id(outside)] = None
    for name in _NATIVE:
        if hasattr(base, name):
            memo[id(getattr(base, name))] = type(getattr(base, name))()
    for module in base.modules():
        for name, value in vars(module).items():
            if name in _FUNCTIONS and isinstance(value, list):
                memo[id(value)] = []  # patches that wait for an offloaded layer, with all their tensors
            elif _is_staged(name) and not isinstance(value, _ATOMS):
                memo[id(value)] = None
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        memo[id(tensor)] = _copied(_unpatched(model, name, tensor), parameter=isinstance(tensor, torch.nn.Parameter))
    return memo


def _unpatched(model: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight or buffer as it was before the host patched, cast or hooked it."""
    if name in model.backup:
        return model.backup[name].weight
    if name in model.hook_backup:
        return model.hook_backup[name][0]
    return getattr(model, "backup_buffers", {}).get(name, tensor)


def _copied(tensor: torch.Tensor, *, parameter: bool) -> torch.Tensor:
    """In main memory, of the same type and layout. `tensor.data` would lose the type of other packs' tensors."""
    fresh = tensor.detach().to(_CPU, copy=True)
    if getattr(fresh, "patches", None):
        vars(fresh)["patches"] = []  # ComfyUI-GGUF keeps those of the loaded model on the weight
    return torch.nn.Parameter(fresh, requires_grad=False) if parameter else fresh


def _forget_loading(module: torch.nn.Module) -> None:
    """Undo what the host notes on a layer while a model is loaded."""
    for name in _FUNCTIONS:
        if hasattr(module, name):
            setattr(module, name, [])
    if hasattr(module, "prev_comfy_cast_weights"):
        module.comfy_cast_weights = module.prev_comfy_cast_weights
        del module.prev_comfy_cast_weights
    for name in [name for name in vars(module) if name == "comfy_patched_weights" or _is_staged(name)]:
        delattr(module, name)


def _is_staged(name: str) -> bool:
    return name in _STAGED or name.endswith("_lowvram_function")
