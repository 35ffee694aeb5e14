"""How a forward is cut into bands and on which devices: validated settings of the nodes that do it."""

from __future__ import annotations

from dataclasses import dataclass

from ...clear_core.bands.workers import TextMerge
from ...clear_core.layout import Grid
from .lanes import MAX_BANDS, DeviceShare, parse_devices
from .limits import one_of

TEXT_MERGES: tuple[TextMerge, ...] = ("exact", "average")


@dataclass(frozen=True, slots=True)
class BandSettings:
    """devices: one for each lane, a device may stand more than once; empty for all of the machine.

    bands: 0 for one a lane, or more where memory asks for it. rows: of tokens in a band, in place of a number of bands;
    0 for no limit.
    """

    devices: tuple[DeviceShare, ...]
    bands: int
    text_merge: TextMerge
    rows: int = 0

    def count(self, image: Grid) -> int:
        """The number of bands of an image of so many tokens that was asked for; 0 where memory decides."""
        if self.bands or not self.rows:
            return self.bands
        return min(MAX_BANDS, max(1, image.height // self.rows))


def resolve_bands(devices: str, bands: int, text_merge: str) -> BandSettings:
    """Turn the node's inputs into settings. Raises ValueError naming the value, what is allowed and what to do."""
    wanted = parse_devices(devices)
    check_bands(None, bands, text_merge)
    merge: TextMerge = "average" if text_merge == "average" else "exact"
    return BandSettings(wanted, bands, merge)


def check_bands(devices: str | None, bands: int | None, text_merge: str | None) -> None:
    """Raises ValueError for values that mean nothing on any machine; None is a value not known yet."""
    if devices is not None:
        parse_devices(devices)
    if bands is not None and not 0 <= bands <= MAX_BANDS:
        raise ValueError(f"bands is {bands}; choose 0 (as many as needed) to {MAX_BANDS}")
    if text_merge is not None:
        one_of("text_merge", text_merge, TEXT_MERGES)
