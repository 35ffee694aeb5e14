"""Confidence intervals by bootstrap: the score again for sets of as many images, drawn with replacement.

A mean's interval is that of the percentiles. FID and IS have none of that kind: about 63 % of a resample are distinct
images, which moves these scores as fewer images would. Theirs is the score plus and minus 1.96 standard deviations of
the resampled scores. Pairs are drawn together, so what both folders share is not counted as chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

RESAMPLES: Final = 1000
"""For means."""
SET_RESAMPLES: Final = 50
"""For FID and IS, which take seconds each."""
LEVEL: Final = 0.95
_NORMAL: Final = 1.96
_AT_ONCE: Final = 2**22  # drawn indices


@dataclass(frozen=True, slots=True)
class Score:
    """low, high: of the confidence interval at LEVEL; None for a single image. count: images or pairs."""

    value: float
    low: float | None
    high: float | None
    count: int


def of_mean(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Score:
    """values: [images], at least one."""
    values, count = values.double(), len(values)
    mean = float(values.mean())
    if count < 2:
        return Score(mean, None, None, count)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for at in range(0, resamples, each := max(1, _AT_ONCE // count)):
        drawn = torch.randint(count, (min(each, resamples - at), count), generator=generator)
        means.append(values[drawn].mean(1))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(tails).tolist()
    return Score(mean, low, high, count)


def of_set(
    count: int,
    score: Callable[[Tensor], float],
    resamples: int = SET_RESAMPLES,
    seed: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Score:
    """score: of the images with these indices. count: images, at least two. poll: called before each resample."""
    value = score(torch.arange(count))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(resamples):
        poll()
        found.append(score(torch.randint(count, (count,), generator=generator)))
    reach = _NORMAL * float(torch.tensor(found, dtype=torch.float64).std())
    return Score(value, value - reach, value + reach, count)
