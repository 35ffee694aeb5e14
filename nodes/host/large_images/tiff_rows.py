"""The strips or tiles of a TIFF that a region needs, and no others."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from ...options.region import LONGEST
from . import BAND

if TYPE_CHECKING:
    from tifffile import TiffPage

_NONE, _DEFLATE = 1, (8, 32946)
_UNASSOCIATED: Final = 2


@dataclass(frozen=True, slots=True)
class TiffRows:
    """Segments: the tiles, or the strips as tiles of the image's width. samples: per pixel, of `dtype`.

    has_alpha: in the fourth sample, with colours that are not multiplied by it.
    """

    path: Path
    width: int
    height: int
    samples: int
    dtype: np.dtype
    has_alpha: bool
    compressed: bool
    differences: bool
    tiled: bool
    segment_width: int
    segment_height: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def read(self, left: int, top: int, right: int, bottom: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """y, x and the pixels [rows, columns, samples] of each part of the region. Raises ValueError where damaged."""
        across = -(-self.width // self.segment_width)
        with self.path.open("rb") as file:
            for y in range(top // self.segment_height * self.segment_height, bottom, self.segment_height):
                rows = self.segment_height if self.tiled else min(self.segment_height, self.height - y)
                first, last = max(0, top - y), min(rows, bottom - y)
                for x in range(left // self.segment_width * self.segment_width, right, self.segment_width):
                    index = y // self.segment_height * across + x // self.segment_width
                    for row, pixels in self._segment(file, index, first, last):
                        yield y + row, max(left, x), pixels[:, max(0, left - x) : right - x]

    def _segment(self, file: IO[bytes], index: int, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of a segment, some at a time: a strip may be the whole image."""
        offset, size = self.offsets[index], self.sizes[index]
        row_bytes = self.segment_width * self.samples * self.dtype.itemsize
        inflated = memoryview(b"")
        if self.compressed:
            end = file.seek(0, os.SEEK_END)
            file.seek(offset)
            # Neither a size that is made up nor what the data inflate to asks for more memory than there are pixels.
            data = file.read(min(size, max(0, end - offset)))
            inflated = memoryview(zlib.decompressobj().decompress(data, last * row_bytes))
        step = max(1, BAND // self.segment_width)
        for row in range(first, last, step):
            count = min(step, last - row)
            if self.compressed:
                data = inflated[row * row_bytes : (row + count) * row_bytes]
            else:
                file.seek(offset + row * row_bytes)
                data = file.read(count * row_bytes)
            shape = (count, self.segment_width, self.samples)
            pixels = np.frombuffer(data, self.dtype, math.prod(shape)).reshape(shape)
            yield row, np.cumsum(pixels, axis=1, dtype=self.dtype) if self.differences else pixels


def tiff_rows(path: Path) -> TiffRows | None:
    """None where the first page is stored in another way than most: Pillow reads it whole."""
    from tifffile import TiffFile  # not needed before a TIFF is read

    with TiffFile(path) as tiff:
        page = tiff.pages.first
        if not _is_plain(page):
            return None
        width, height = page.imagewidth, page.imagelength
        across, down = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
        if not (0 < across <= LONGEST and 0 < down <= LONGEST):
            return None
        kind = page.dtype
        assert kind is not None
        return TiffRows(
            path=path,
            width=width,
            height=height,
            samples=page.samplesperpixel,
            dtype=np.dtype(kind).newbyteorder(tiff.byteorder),
            has_alpha=page.samplesperpixel == 4 and tuple(page.extrasamples) == (_UNASSOCIATED,),
            compressed=page.compression != _NONE,
            differences=page.predictor == 2 and page.compression != _NONE,
            tiled=page.is_tiled,
            segment_width=across,
            segment_height=down,
            offsets=tuple(page.dataoffsets),
            sizes=tuple(page.databytecounts),
        )


def _is_plain(page: TiffPage) -> bool:
    """Grey, RGB or RGBA in whole bytes, not compressed or with deflate, top row first.

    Alpha that the colours are multiplied by, other compressions and layouts are Pillow's.
    """
    grey = page.samplesperpixel == 1 and page.photometric == 1
    colour = page.photometric == 2 and page.planarconfig == 1
    colour = colour and (page.samplesperpixel == 3 or tuple(page.extrasamples) in ((0,), (_UNASSOCIATED,)))
    return (
        (grey or (colour and page.samplesperpixel in (3, 4)))
        and page.dtype in (np.uint8, np.uint16)
        and page.bitspersample == 8 * np.dtype(page.dtype).itemsize
        and page.sampleformat == 1
        and page.imagedepth == 1
        and page.fillorder == 1
        and (page.compression == _NONE or page.compression in _DEFLATE)
        and page.predictor in (1, 2)
        and page.tags.valueof(274, 1) == 1
    )
