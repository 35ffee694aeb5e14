"""An image cut into bands of rows, the bands dealt to lanes, and the halos that bands need of each other.

lane 0   band 0   rows 0..16      each lane works on one device, its bands one after another;
         band 1   rows 16..32     a band's halo is the keys and values within r - 1 rows of its
lane 1   band 2   rows 32..48     borders: of its neighbours, and of bands beyond where these are
         band 3   rows 48..64     thinner than the halo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..layout import Band, Grid
from ..window import Window


@dataclass(frozen=True)
class BandPlan:
    """Bands from top to bottom, and the lane each belongs to. window: None where every band needs all others.

    together: every band must have published before the first attends (down-sampled variants).
    """

    image: Grid
    bands: tuple[Band, ...]
    lanes: tuple[int, ...]
    window: Window | None
    together: bool = False

    def __post_init__(self) -> None:
        joined = all(a.stop == b.start for a, b in pairwise(self.bands))
        if not joined or self.bands[0].start != 0 or self.bands[-1].stop != self.image.height:
            raise ValueError(f"bands must follow each other and cover {self.image.height} rows, got {self.bands}")
        if len(self.lanes) != len(self.bands) or list(self.lanes) != sorted(self.lanes):
            raise ValueError(f"each band needs a lane, in order, got {self.lanes} for {len(self.bands)} bands")

    @classmethod
    def cut(
        cls, image: Grid, count: int, window: Window | None, *, down_factor: int = 1, shares: Sequence[float] = (1.0,)
    ) -> BandPlan:
        """About `count` bands of nearly equal height, dealt to lanes.

        down_factor: of the down-sampled variants, 1 for the others; the bands' borders fall between its cells.
        shares: each lane's part of the rows, relative to the others.
        """
        bands = cut_rows(image.height, count, down_factor)
        return cls(image, bands, deal(len(bands), shares), window, together=down_factor > 1)

    @property
    def lane_count(self) -> int:
        return self.lanes[-1] + 1

    def bands_of(self, lane: int) -> tuple[int, ...]:
        return tuple(band for band, owner in enumerate(self.lanes) if owner == lane)

    def rows_seen(self, band: int) -> Band:
        """The rows whose keys a band's queries look at."""
        return self.image.rows if self.window is None else self.bands[band].grown(self.window.halo, self.image)

    @cached_property
    def needs(self) -> tuple[dict[int, Band], ...]:
        """For each band the bands whose keys it needs, itself included, and of each the rows."""
        return tuple(self._needs(band) for band in range(len(self.bands)))

    @cached_property
    def awaits(self) -> tuple[tuple[int, ...], ...]:
        """For each band the bands that must have published before it attends, in order."""
        every = tuple(range(len(self.bands)))
        return tuple(every if self.together else tuple(sorted(needed)) for needed in self.needs)

    @cached_property
    def sends(self) -> tuple[dict[int, Band], ...]:
        """For each band the other lanes that need its keys, and of which rows: the inverse of `needs`."""
        sends = [dict[int, Band]() for _ in self.bands]
        for needed, lane in zip(self.needs, self.lanes, strict=True):
            for band, rows in needed.items():
                if self.lanes[band] != lane:
                    sends[band][lane] = rows.joined(sends[band].get(lane, rows))
        return tuple(sends)

    @cached_property
    def halos(self) -> tuple[dict[int, Band], ...]:
        """For each lane the other lanes that need keys of its rows, and of which: they are next to each other."""
        halos = [dict[int, Band]() for _ in range(self.lane_count)]
        for lane, sends in zip(self.lanes, self.sends, strict=True):
            for target, rows in sends.items():
                halos[lane][target] = rows.joined(halos[lane].get(target, rows))
        return tuple(halos)

    @cached_property
    def borders(self) -> tuple[tuple[int, ...], ...]:
        """For each lane the bands of it that another lane waits for: they go first."""
        waited = {
            other
            for band in range(len(self.bands))
            for other in self.awaits[band]
            if self.lanes[other] != self.lanes[band]
        }
        return tuple(tuple(b for b in self.bands_of(lane) if b in waited) for lane in range(self.lane_count))

    def _needs(self, band: int) -> dict[int, Band]:
        seen = self.rows_seen(band)
        found = {}
        for other, rows in enumerate(self.bands):
            start, stop = max(rows.start, seen.start), min(rows.stop, seen.stop)
            if start < stop:
                found[other] = Band(start, stop)
        return found


def cut_rows(height: int, count: int, multiple: int = 1) -> tuple[Band, ...]:
    """About `count` bands of nearly equal height, borders at multiples of `multiple` rows; never an empty one."""
    units = -(-height // multiple)
    count = max(1, min(count, units))
    edges = [min(height, units * i // count * multiple) for i in range(count + 1)]
    return tuple(Band(a, b) for a, b in pairwise(edges))


def deal(bands: int, shares: Sequence[float]) -> tuple[int, ...]:
    """A lane for each of `bands` bands, contiguous, in proportion to the lanes' shares; each lane gets one at least.

    Fewer bands than lanes: the last lanes get none.
    """
    shares = list(shares[:bands])
    total = sum(shares)
    owners, done = [], 0.0
    for lane, share in enumerate(shares):
        done += share
        left = len(shares) - lane - 1
        stop = min(max(round(bands * done / total), len(owners) + 1), bands - left)
        owners += [lane] * (stop - len(owners))
    return tuple(owners)


def halo_bytes(image: Grid, window: Window, channels: int, element_size: int, borders: int) -> int:
    """Bytes of keys and values that one band sends in one layer: r - 1 rows to each neighbour on another lane."""
    return 2 * window.halo * image.width * channels * element_size * borders


def all_to_all_bytes(tokens: int, channels: int, element_size: int, devices: int) -> int:
    """Bytes that one of `devices` sends in one layer of sequence parallelism (Ulysses): q, k, v and the output."""
    return 4 * tokens // devices * channels * element_size * (devices - 1) // devices
