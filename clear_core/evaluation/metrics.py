"""The metrics: what each needs, and its score of the rows of one folder's pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from . import intervals
from .intervals import Score
from .scores import cosines, frechet_distance, inception_score
from .similarity import MS_SSIM_SIDE, SSIM_SIDE, similarity

INCEPTION, LPIPS, CLIP, TEXT, DINO, PIXELS = "inception", "lpips", "clip", "text", "dino", "pixels"
"""Kinds of measures. INCEPTION, CLIP and DINO take an image, LPIPS and PIXELS a pair, TEXT a prompt."""
OF_IMAGES: Final = (INCEPTION, CLIP, DINO)
OF_PAIRS: Final = (PIXELS, LPIPS)
LPIPS_SIDE: Final = 31
"""The shortest side, in pixels, that AlexNet's layers take."""


@dataclass(frozen=True, slots=True)
class Metric:
    """kinds: of the measures it needs. digits: after the point. of_one: the original has one by itself, too."""

    name: str
    kinds: tuple[str, ...]
    lower_is_better: bool = False
    digits: int = 2
    of_one: bool = False

    @property
    def title(self) -> str:
        """The name with an arrow to what is better."""
        return f"{self.name} {'↓' if self.lower_is_better else '↑'}"


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("FID", (INCEPTION,), lower_is_better=True),
            Metric("LPIPS", (LPIPS,), lower_is_better=True, digits=4),
            Metric("CLIP-I", (CLIP,)),
            Metric("DINO", (DINO,)),
            Metric("CLIP-T", (CLIP, TEXT), of_one=True),
            Metric("IS", (INCEPTION,), of_one=True),
            Metric("PSNR", (PIXELS,)),
            Metric("SSIM", (PIXELS,), digits=4),
            Metric("MS-SSIM", (PIXELS,), digits=4),
        )
    }
)
"""By name, in the order of the paper's tables."""


def metrics_named(names: Sequence[str]) -> tuple[str, ...]:
    """In the table's order, without regard to case; all for none. Raises ValueError for a name that is no metric."""
    known = {name.lower(): name for name in METRICS}
    if unknown := [name for name in names if name.lower() not in known]:
        raise ValueError(f"metrics has {unknown[0]!r:.60}; allowed are {', '.join(METRICS)}.")
    asked = {known[name.lower()] for name in names}
    return tuple(name for name in METRICS if name in asked or not asked)


def pixel_rows(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """PSNR, SSIM and MS-SSIM of pairs of uint8 images [height, width, 3]: float32 [pairs, 3].

    All NaN where the sizes differ; SSIM or MS-SSIM alone where a side is too short for its window.
    """
    return torch.tensor([_pixel_row(a, b) for a, b in pairs])


def _pixel_row(a: Tensor, b: Tensor) -> list[float]:
    if a.shape != b.shape:
        return [math.nan] * 3
    found = similarity(a / 255, b / 255, lambda pixels: None)
    row = [found.psnr, *(math.nan if value is None else value for value in (found.ssim, found.ms_ssim))]
    if math.isinf(found.psnr):  # equal images have a similarity of 1 at every size: as if they had room for the window
        side = min(a.shape[:2])
        row[1:] = [1.0 if side >= least else math.nan for least in (SSIM_SIDE, MS_SSIM_SIDE)]
    return row


def pair_scores(pixels: Tensor | None, lpips: Tensor | None) -> tuple[dict[str, Score | str], list[str]]:
    """Scores, or why there is none, of the rows of PIXELS and LPIPS, and what to note."""
    found: dict[str, Score | str] = {}
    notes: list[str] = []
    if lpips is not None:
        found["LPIPS"] = _mean_of_known(lpips[:, 0], LPIPS_SIDE)
    if pixels is not None:
        psnr = pixels[:, 0]
        equal = int(psnr.isinf().sum())
        found["PSNR"] = Score(math.inf, None, None, equal)
        if equal < len(psnr):
            found["PSNR"] = _mean_of_known(psnr[~psnr.isinf()], 1)
        found["SSIM"] = _mean_of_known(pixels[:, 1], SSIM_SIDE)
        found["MS-SSIM"] = _mean_of_known(pixels[:, 2], MS_SSIM_SIDE)
        if 0 < equal < len(psnr):
            notes.append(f"PSNR is the mean of the pairs that differ; of {equal} identical ones it is infinite")
        if unequal := int(psnr.isnan().sum()):
            notes.append(f"{unequal} pairs have images of two sizes: LPIPS, PSNR, SSIM and MS-SSIM are of the others")
    return found, notes


def image_scores(
    metrics: Sequence[str], kind: str, features: int, images: Tensor, originals: Tensor, poll: Callable[[], None]
) -> dict[str, Score | str]:
    """Scores of the rows of one of OF_IMAGES; images, originals: [pairs, width] in the order of the pairs."""
    if kind != INCEPTION:
        return {"CLIP-I" if kind == CLIP else "DINO": intervals.of_mean(cosines(images, originals))}
    found: dict[str, Score | str] = {}
    if "FID" in metrics:
        a, b = images[:, :features], originals[:, :features]
        found["FID"] = _of_set(len(a), lambda drawn: frechet_distance(a[drawn], b[drawn]), poll)
    if "IS" in metrics:
        found |= inception_scores(features, images, poll)
    return found


def inception_scores(features: int, images: Tensor, poll: Callable[[], None]) -> dict[str, Score | str]:
    """IS of one folder; images: rows of INCEPTION."""
    logits = images[:, features:]
    return {"IS": _of_set(len(logits), lambda drawn: inception_score(logits[drawn]), poll)}


def text_scores(images: Tensor, texts: Tensor) -> dict[str, Score | str]:
    """CLIP-T; images, texts: [images with a prompt, width]."""
    return {"CLIP-T": intervals.of_mean(cosines(images, texts)) if len(images) else "none of the images has a prompt"}


def _of_set(count: int, score: Callable[[Tensor], float], poll: Callable[[], None]) -> Score | str:
    return intervals.of_set(count, score, poll=poll) if count > 1 else "it needs two images at least"


def _mean_of_known(values: Tensor, side: int) -> Score | str:
    known = values[~values.isnan()]
    if not len(known):
        return f"no pair has two images of one size, {side} pixels a side or more"
    return intervals.of_mean(known)
