"""Which devices share a forward: what `devices` says, resolved against the devices that a machine has.

A lane is one device's part of the work; a device that is named twice has two. Devices are known by name here, such as
cpu or cuda:0, so that a sampling run and the page resolve the same text alike, and no GPU is needed to test it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

AUTO = "auto"
MAX_BANDS = 256
# PyTorch reads cuda:200 as cuda:-56: no index that a machine cannot have.
_DEVICE = re.compile(r"(cpu|(?:cuda|xpu|mps)(?::(?:0|[1-9][0-9]?))?)(?:=([0-9]{1,9}(?:\.[0-9]{1,9})?))?")
_LONGEST = 4096  # characters of `devices`


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """One entry of `devices`. name: cpu, or with an index, such as cuda:0.

    share: of the rows, relative to the other lanes; None to be measured where GPUs differ.
    """

    name: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class ResolvedLanes:
    """Each lane's device and share, and the names that the machine lacks."""

    lanes: tuple[DeviceShare, ...]
    missing: tuple[str, ...] = ()


def split_devices(text: str) -> list[str]:
    """The entries of a `devices` text as written; none for auto."""
    entries = [entry.strip() for entry in text.split(",")]
    return [] if len(entries) == 1 and entries[0].lower() in (AUTO, "") else entries


def parse_device(entry: str) -> DeviceShare:
    """One entry, such as cuda:1=0.5; cuda is cuda:0. Raises ValueError naming it and what is allowed."""
    match = _DEVICE.fullmatch(entry.strip().lower())
    share = float(match[2]) if match and match[2] else None
    if match is None or share == 0:
        raise ValueError(
            f"devices has {entry.strip().lower()[:40]!r}; write auto, or names such as cuda:0,cuda:1 separated by "
            "commas, each with its share of the rows if you like (cuda:0=2,cuda:1=1)"
        )
    name = match[1]
    return DeviceShare(name if name == "cpu" or ":" in name else f"{name}:0", share)


def parse_devices(text: str) -> tuple[DeviceShare, ...]:
    """ "auto" is (); "cuda:0,cuda:1=0.5" is two devices, the second with half the first's rows. Raises ValueError."""
    if len(text) > _LONGEST:
        raise ValueError(f"devices is {len(text):,} characters long; {MAX_BANDS} names need no more than {_LONGEST:,}")
    found = tuple(parse_device(entry) for entry in split_devices(text))
    if len(found) > MAX_BANDS:
        raise ValueError(f"devices has {len(found)} names; at most {MAX_BANDS} are useful")
    return found


def resolve_lanes(wanted: Sequence[DeviceShare], machine: Sequence[str]) -> ResolvedLanes:
    """The lanes of a run. Devices that are missing are left out; if none is left, ComfyUI's own device does it all.

    wanted: what `parse_devices` gave; empty for auto, which is ComfyUI's own device and, if that is a CUDA GPU, all
    others. machine: its devices' names, ComfyUI's own first.
    """
    home = machine[0]
    if not wanted:
        others = [name for name in machine[1:] if _is_cuda(name) and _is_cuda(home)]
        return ResolvedLanes(tuple(DeviceShare(name) for name in (home, *others)))
    lanes = tuple(device for device in wanted if device.name in machine)
    missing = tuple(device.name for device in wanted if device.name not in machine)
    return ResolvedLanes(lanes or (DeviceShare(home),), missing)


def _is_cuda(name: str) -> bool:
    return name.startswith("cuda:")
