"""How a forward is cut into bands and on which devices: what the nodes' inputs mean, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...clear_core.bands.workers import TextMerge

AUTO = "auto"
MAX_BANDS = 256
TEXT_MERGES: tuple[TextMerge, ...] = ("exact", "average")
# PyTorch takes cuda:200 for cuda:-56: no number that a machine cannot have.
_DEVICE = re.compile(r"(cpu|(?:cuda|xpu|mps)(?::(?:0|[1-9][0-9]?))?)(?:=([0-9]{1,9}(?:\.[0-9]{1,9})?))?")
_LONGEST = 4096  # characters of `devices`


@dataclass(frozen=True, slots=True)
class Device:
    """One lane's device. share: of the rows, relative to the others; None to be measured where cards differ."""

    name: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class BandSettings:
    """devices: one for each lane, a device may stand more than once; empty for all of the machine.

    bands: 0 for one a lane, or more where memory asks for it.
    """

    devices: tuple[Device, ...]
    bands: int
    text_merge: TextMerge


def resolve_bands(devices: str, bands: int, text_merge: str) -> BandSettings:
    """Turn the node's inputs into settings. Raises ValueError naming the value, what is allowed and what to do."""
    check_bands(devices, bands, text_merge)
    merge: TextMerge = "average" if text_merge == "average" else "exact"
    return BandSettings(parse_devices(devices), bands, merge)


def check_bands(devices: str | None, bands: int | None, text_merge: str | None) -> None:
    """Raises ValueError for values that mean nothing on any machine; None is a value not known yet."""
    if devices is not None:
        parse_devices(devices)
    if bands is not None and not 0 <= bands <= MAX_BANDS:
        raise ValueError(f"bands is {bands}; choose 0 (as many as needed) to {MAX_BANDS}")
    if text_merge is not None and text_merge not in TEXT_MERGES:
        raise ValueError(f"text_merge is {text_merge!r:.60}; choose one of: {', '.join(TEXT_MERGES)}")


def parse_devices(text: str) -> tuple[Device, ...]:
    """ "auto" is (); "cuda:0,cuda:1=0.5" is two devices, the second with half the first's rows."""
    if len(text) > _LONGEST:
        raise ValueError(f"devices is {len(text):,} characters long; {MAX_BANDS} names need no more than {_LONGEST:,}")
    names = [part.strip().lower() for part in text.split(",")]
    if names in ([AUTO], [""]):
        return ()
    found = []
    for name in names:
        match = _DEVICE.fullmatch(name)
        share = float(match[2]) if match and match[2] else None
        if match is None or share == 0:
            raise ValueError(
                f"devices has {name[:40]!r}; write auto, or names such as cuda:0,cuda:1 separated by commas, each with "
                "its share of the rows if you like (cuda:0=2,cuda:1=1)"
            )
        found.append(Device(match[1], share))
    if len(found) > MAX_BANDS:
        raise ValueError(f"devices has {len(found)} names; at most {MAX_BANDS} are useful")
    return tuple(found)
