"""PNG and TIFF, written from bands of rows: memory for some bands, whatever the size of the image.

A band is uint8 [rows, width, channels]; an image has 1 (grey), 3 (RGB) or 4 (RGBA) channels. Metadata is what ComfyUI
saves: `prompt` and the entries of `extra_pnginfo`, each as JSON.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

_LEVEL = 4
"""Of zlib: that of ComfyUI's Save Image."""

_CLASSIC_TIFF = 2**32 - 2**25
"""Bytes of pixels up to which the offsets of a TIFF have 32 bits; tifffile's own limit."""

_log = logging.getLogger("clear-attention")

Bands = Iterable[np.ndarray]
Write = Callable[[IO[bytes], tuple[int, int, int], int, Bands, Mapping[str, Any]], None]
"""file, (height, width, channels), rows of each band but the last, bands, metadata."""


def write_png(
    file: IO[bytes], shape: tuple[int, int, int], rows: int, bands: Bands, metadata: Mapping[str, Any]
) -> None:
    """Text chunks stand before the pixels: readers find them without reading the file."""
    import png  # not needed before an image is saved

    height, width, channels = shape
    colours: dict[str, Any] = {"greyscale": channels == 1, "alpha": channels == 4}
    writer = png.Writer(width, height, bitdepth=8, **colours)
    writer.write_preamble(file)
    for key, value in metadata.items():
        try:
            # json.dumps writes ASCII, which fits tEXt; the page takes the head of an iTXt chunk for a part of the JSON.
            chunk = key.encode("latin-1") + b"\0" + json.dumps(value).encode("ascii")
        except UnicodeEncodeError:
            _log.warning("CLEAR: %r is left out of the image's metadata: a PNG's keys are Latin-1", key)
            continue
        png.write_chunk(file, b"tEXt", chunk)
    # pypng's own rows are unfiltered, which makes a photo a third larger.
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    for band in _filtered(bands, channels):
        if compressed := compressor.compress(band.data):
            png.write_chunk(file, b"IDAT", compressed)
    png.write_chunk(file, b"IDAT", compressor.flush())
    png.write_chunk(file, b"IEND")


def write_tiff(
    file: IO[bytes], shape: tuple[int, int, int], rows: int, bands: Bands, metadata: Mapping[str, Any]
) -> None:
    """A band is a strip: deflate over horizontal differences. Metadata: one JSON object in ImageDescription."""
    from tifffile import TiffWriter

    height, width, channels = shape
    with TiffWriter(file, bigtiff=height * width * channels > _CLASSIC_TIFF) as writer:
        writer.write(
            _strips(bands),
            shape=shape if channels > 1 else shape[:2],
            dtype=np.uint8,
            photometric="minisblack" if channels == 1 else "rgb",
            extrasamples=["unassalpha"] if channels == 4 else None,
            rowsperstrip=rows,
            compression="zlib",
            predictor=True,
            description=json.dumps(metadata) if metadata else None,
            metadata=None,  # tifffile's own, a second ImageDescription
            software=False,
        )


def _strips(bands: Bands) -> Iterator[bytes]:
    for band in bands:
        differences = band.copy()
        differences[:, 1:] -= band[:, :-1]
        yield zlib.compress(differences.data, _LEVEL)


def _filtered(bands: Bands, channels: int) -> Iterator[np.ndarray]:
    """The rows as PNG stores them: the filter's number, then the row minus what the filter predicts.

    Of the filters None, Sub, Up and Average each row gets the one with the least sum of absolute differences, the
    choice that the PNG specification recommends (section 12.7). Paeth, the fifth, alone takes longer than these four.
    """
    above: np.ndarray | None = None
    for band in bands:
        pixels = band.reshape(len(band), -1)
        left, up = np.zeros_like(pixels), np.empty_like(pixels)
        left[:, channels:] = pixels[:, :-channels]
        up[1:] = pixels[:-1]
        up[0] = 0 if above is None else above
        above = pixels[-1].copy()
        average = (left >> 1) + (up >> 1) + (left & up & 1)
        differences = (pixels, pixels - left, pixels - up, pixels - average)
        # Bytes are read as -128 to 127.
        sums = [np.minimum(one, 0 - one).sum(axis=1, dtype=np.uint64) for one in differences]
        best = np.argmin(sums, axis=0)
        rows = np.empty((len(pixels), 1 + pixels.shape[1]), np.uint8)
        rows[:, 0] = best
        for number, one in enumerate(differences):
            rows[best == number, 1:] = one[best == number]
        yield rows
