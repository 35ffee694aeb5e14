"""The devices that share a forward, and the copies of the model's weights on the further ones.

A replica is a ModelPatcher of its own (`replicate`): it has the same patches, its own copy of the unpatched weights,
and is loaded, moved and freed by ComfyUI's model management like any other model.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ...options.lanes import DeviceShare, resolve_lanes
from ..machine import device_name, machine_devices
from .replicate import match, replicate


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A device's part in a forward. flux: the transformer whose weights lie on it; share: of the rows.

    patcher: the MODEL that the host loads there; None before a sampling run has been prepared.
    """

    device: torch.device
    flux: Any
    share: float
    patcher: Any = None


class Replicas:
    """The copies made for one sampling run and kept for the next, while the model stays the same."""

    def __init__(self, devices: Sequence[DeviceShare]) -> None:
        self._wanted = tuple(devices)
        self._made: dict[torch.device, Any] = {}
        self._of: Callable[[], Any] = lambda: None
        self._main: Callable[[], Any] = lambda: None
        self._hooked: dict[torch.device, object] = {}
        self._rates: dict[torch.device, float] = {}

    def prepare(self, model: Any) -> dict[torch.device, Any]:
        """The replicas for a MODEL that is about to be sampled, by device, made where they are missing.

        Call it before the host loads the model: nothing of a replica is on its device yet, and a host that makes the
        copy itself unloads the model for it. Raises ValueError for what a copy cannot have.
        """
        self._main = weakref.ref(model)
        home = torch.device(model.load_device)
        devices = [device for device, _ in self._resolved(home)[0] if device != home]
        if devices and model.injections.get("bypass_lora"):
            raise ValueError(
                f"a LoRA in bypass mode works on {home} alone, not on {devices[0]}: load the LoRA with the ordinary "
                f"loader, or set devices of CLEAR Multi-GPU to {device_name(home)}"
            )
        if self._of() is not model.model:
            self._made.clear()
            self._hooked.clear()
            self._of = weakref.ref(model.model)
        for device in devices:
            if device not in self._made:
                self._made[device] = replicate(model, device)
        for replica in self._made.values():
            match(replica, model)
        return dict(self._made)

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
            patcher = self._main() if own else self._made[device]
            module = flux if own else patcher.model.diffusion_model
            lanes.append(Lane(home if own else device, module, float(share or 1.0), patcher))
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
