"""How alike two images are: PSNR, SSIM and MS-SSIM, in strips of rows, so that images of any size fit into memory.

The strips change nothing: each brings along the rows that its windows reach into, and the strips' means, weighted by
their pixels, add up to the mean over the image. The same holds at each of MS-SSIM's scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import avg_pool2d

# torchmetrics' defaults, which are the authors': a Gaussian window of 11 pixels, weights of five scales.
_REACH = 5
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_STRIP = 2**18  # pixels; torchmetrics takes about 1 KB for each

SSIM_SIDE = 2 * _REACH + 1
"""The shortest side, in pixels, with room for a window."""
MS_SSIM_SIDE = SSIM_SIDE * 2 ** (len(_WEIGHTS) - 1)
"""The shortest side, in pixels, with room for a window at the last scale, a sixteenth."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """psnr: in dB, inf for equal images. ssim, ms_ssim: 1 for equal images, None where a side is too short for them."""

    psnr: float
    ssim: float | None = None
    ms_ssim: float | None = None


def similarity(a: Tensor, b: Tensor, done: Callable[[int], None]) -> Similarity:
    """Compare two images [height, width, channels], float32 on the CPU; the range of values is taken as 0 to 1.

    done: called with the pixels of every strip, `pixels_to_do` in all; not called for equal images.
    Raises RuntimeError where torchmetrics is not installed.
    """
    a, b = (image.movedim(-1, 0)[None] for image in (a, b))
    height, width = a.shape[-2:]
    squares = sum(
        float((a[..., rows.start : rows.stop, :] - b[..., rows.start : rows.stop, :]).double().square().sum())
        for rows in _strips(height, width)
    )
    if squares == 0:
        return Similarity(math.inf, 1.0, 1.0)
    psnr = -10 * math.log10(squares / a.numel())
    means: list[tuple[float, float]] = []
    for scale in range(_scales(height, width)):
        if scale > 0:
            a, b = (avg_pool2d(image, 2) for image in (a, b))
        means.append(_means(a, b, done))
    if not means:
        return Similarity(psnr)
    ssim = means[0][0]
    if len(means) < len(_WEIGHTS):
        return Similarity(psnr, ssim)
    # Contrast and structure at every scale, luminance at the last only. A mean below 0 counts as 0.
    terms = [*(contrast for _, contrast in means[:-1]), means[-1][0]]
    return Similarity(psnr, ssim, math.prod(max(term, 0.0) ** w for term, w in zip(terms, _WEIGHTS, strict=True)))


def pixels_to_do(height: int, width: int) -> int:
    """The pixels of all scales together."""
    return sum((height >> scale) * (width >> scale) for scale in range(_scales(height, width)))


def _scales(height: int, width: int) -> int:
    side = min(height, width)
    return 0 if side < SSIM_SIDE else 1 if side < MS_SSIM_SIDE else len(_WEIGHTS)


def _means(a: Tensor, b: Tensor, done: Callable[[int], None]) -> tuple[float, float]:
    """SSIM and its contrast-structure term at one scale, as torchmetrics takes their means.

    SSIM over all pixels, with the edge mirrored; the term over those with a whole window.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "Comparing images needs the package torchmetrics, which is not installed. Run pip install -r "
            "requirements.txt, the file of this pack, in ComfyUI's environment and restart ComfyUI."
        ) from error
    height, width = a.shape[-2:]
    ssim = contrast = 0.0
    for rows in _strips(height, width):
        seen = range(max(rows.start - _REACH, 0), min(rows.stop + _REACH, height))
        x, y = (image[..., seen.start : seen.stop, :].contiguous() for image in (a, b))
        _, each = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
        _, mean = structural_similarity_index_measure(x, y, data_range=1.0, return_contrast_sensitivity=True)
        own = each[..., rows.start - seen.start : rows.stop - seen.start, :]
        ssim += float(own.double().mean()) * len(rows) / height
        contrast += float(mean) * (len(seen) - 2 * _REACH) / (height - 2 * _REACH)
        done(len(rows) * width)
    return ssim, contrast


def _strips(height: int, width: int) -> Iterator[range]:
    """The image's rows in parts of about the same height, none too low for a window."""
    count = max(1, min(math.ceil(height * width / _STRIP), height // SSIM_SIDE))
    for i in range(count):
        yield range(height * i // count, height * (i + 1) // count)
