"""The devices that share a forward, and the copies of the model's weights on the further ones.

A replica is a ModelPatcher of its own: it has the same patches, object patches and wrappers, its own copy of the
unpatched weights, and is loaded, moved and freed by ComfyUI's model management like any other model.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import comfy.utils
import torch

from ...options.lanes import DeviceShare, resolve_lanes
from ..machine import device_name, machine_devices


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A device's part in a forward. flux: the transformer whose weights lie on it; share: of the rows."""

    device: torch.device
    flux: Any
    share: float


class Replicas:
    """The copies made for one sampling run and kept for the next, while model and patches stay the same."""

    def __init__(self, devices: Sequence[DeviceShare]) -> None:
        self._wanted = tuple(devices)
        self._made: dict[torch.device, Any] = {}
        self._of: object = None
        self._main: Callable[[], Any] = lambda: None
        self._hooked: dict[torch.device, object] = {}
        self._rates: dict[torch.device, float] = {}

    def prepare(self, model: Any) -> list[Any]:
        """The replicas for a MODEL that is about to be sampled, made where they are missing; for the host to load."""
        self._main = weakref.ref(model)
        home = torch.device(model.load_device)
        of = (id(model.model), model.patches_uuid)
        if self._of != of:
            self._made.clear()
            self._hooked.clear()
            self._of = of
        for device, _ in self._resolved(home)[0]:
            if device != home and device not in self._made:
                self._made[device] = replicate(model, device)
        return list(self._made.values())

    def lanes(self, flux: Any, home: torch.device) -> list[Lane]:
        """The lanes of a forward whose input lies on `home`."""
        resolved, _ = self._resolved(home)
        shares = [share for _, share in resolved]
        if any(share is None for share in shares):
            speeds = self._speeds([device for device, _ in resolved])
            shares = [speed if share is None else share for share, speed in zip(shares, speeds, strict=True)]
        lanes = []
        for (device, _), share in zip(resolved, shares, strict=True):
            own = device == home or device not in self._made
            module = flux if own else self._made[device].model.diffusion_model
            lanes.append(Lane(home if own else device, module, float(share or 1.0)))
        return lanes

    def follow_hooks(self) -> None:
        """Put the LoRAs that the model has in this step, by hooks on its conditioning, on the replicas too."""
        main = self._main()
        current = None if main is None else getattr(main.model, "current_patcher", None) or main
        hooks = None if current is None else current.current_hooks
        for device, replica in self._made.items():
            if current is None or hooks is None:
                if replica.current_hooks is not None:
                    replica.patch_hooks(None)
                continue
            # Two hooks are equal to the host if they are the same one, whatever their strength is now.
            state = [(hook.hook_ref, hook.strength) for hook in hooks.hooks]
            if replica.current_hooks is None or self._hooked.get(device) != state:
                replica.hook_patches = current.hook_patches
                replica.cached_hook_patches.clear()
                replica.patch_hooks(hooks)
                self._hooked[device] = state

    def missing(self, home: torch.device) -> tuple[str, ...]:
        """Devices that were named and that this machine lacks."""
        return self._resolved(home)[1]

    def _speeds(self, devices: Sequence[torch.device]) -> list[float]:
        """How fast each device multiplies matrices; 1 for all where they are of one kind. Each is timed once."""
        names = {torch.cuda.get_device_name(device) if device.type == "cuda" else device.type for device in devices}
        if len(names) == 1:
            return [1.0] * len(devices)
        for device in devices:
            if device not in self._rates:
                self._rates[device] = _rate(device)
        return [self._rates[device] for device in devices]

    def _resolved(self, home: torch.device) -> tuple[list[tuple[torch.device, float | None]], tuple[str, ...]]:
        """Each lane's device and share, and the names that this machine lacks."""
        here = {device_name(device): device for device in machine_devices(home)}
        found = resolve_lanes(self._wanted, list(here))
        return [(here[lane.name], lane.share) for lane in found.lanes], found.missing


def preflight(lanes: Sequence[Lane]) -> str:
    """One line: how neighbouring cards reach each other, and how fast; "" where there is only one card."""
    found = []
    for one, other in pairwise(lane.device for lane in lanes):
        if one == other or one.type != "cuda" or other.type != "cuda":
            continue
        way = "peer to peer" if torch.cuda.can_device_access_peer(one, other) else "through main memory"
        block = torch.empty(64 * 2**20, dtype=torch.uint8, device=one)
        block.to(other)  # the first copy opens the way
        _wait(other)
        started = time.perf_counter()
        block.to(other)
        _wait(one)
        _wait(other)
        found.append(f"{one} to {other} {way}, {block.numel() / (time.perf_counter() - started) / 1e9:.0f} GB/s")
    return "; ".join(found)


def replicate(model: Any, device: torch.device) -> Any:
    """A MODEL like `model` with a copy of its unpatched weights, to be loaded on `device`."""
    base, backup = model.model, model.backup
    memo: dict[int, Any] = {}
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        own = backup[name].weight if name in backup else tensor.data
        fresh = own.detach().to(device, copy=True)
        memo[id(tensor)] = (
            torch.nn.Parameter(fresh, requires_grad=False) if type(tensor) is torch.nn.Parameter else fresh
        )
    # Newer hosts' config answers every question, also how it wants to be copied; nothing changes it, so it is shared.
    memo[id(base.model_config)] = base.model_config
    # A patcher that the model refers to is not part of it.
    for outside in (model, getattr(base, "current_patcher", None)):
        if outside is not None:
            memo[id(outside)] = None
    twin = copy.deepcopy(base, memo)
    for key, value in model.object_patches_backup.items():
        comfy.utils.set_attr(twin, key, copy.deepcopy(value))
    for module in twin.modules():
        _forget_loading(module)
    twin.device = device
    twin.model_loaded_weight_memory = 0
    twin.model_lowvram = False
    twin.lowvram_patch_counter = 0
    twin.current_weight_patches_uuid = None
    replica = model.clone()
    replica.model = twin
    replica.load_device = device
    replica.offload_device = torch.device("cpu")
    replica.backup = {}
    replica.object_patches_backup = {}
    replica.hook_backup, replica.cached_hook_patches, replica.current_hooks = {}, {}, None
    replica.parent = None
    return replica


def _forget_loading(module: torch.nn.Module) -> None:
    """Undo what the host notes on a layer while a model is partly loaded."""
    for name in ("weight_function", "bias_function"):
        if hasattr(module, name):
            setattr(module, name, [])
    if hasattr(module, "prev_comfy_cast_weights"):
        module.comfy_cast_weights = module.prev_comfy_cast_weights
        del module.prev_comfy_cast_weights
    if hasattr(module, "comfy_patched_weights"):
        del module.comfy_patched_weights


def _rate(device: torch.device) -> float:
    """Products of 2048 x 2048 matrices in a second, after a warm-up."""
    left = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16 if device.type != "cpu" else torch.float32)
    for rounds in (1, 8):
        _wait(device)
        started = time.perf_counter()
        for _ in range(rounds):
            torch.matmul(left, left)
        _wait(device)
        taken = (time.perf_counter() - started) / rounds
    return 1 / taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
