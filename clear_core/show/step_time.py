"""Seconds of a step of FLUX.1 on a card, from the steps that were measured there.

The model: matrix products grow with the tokens, attention with the (query, key) pairs, each at a rate of its own. Over
the time that this gives, the measured steps are a curve, straight between two of them. So each of them is given as it
was, and a larger image, radius or global context takes longer, as far as it did in what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..flux import CHANNELS, LAYERS, TEXT_TOKENS, token_grid
from ..layout import TokenLayout
from ..pattern import attention_flops
from ..window import Window
from .measured import MeasuredStep

_PRODUCTS = 24 * CHANNELS**2
"""Operations of one token in one block: q, k, v and the output are 4 products of c x c, the MLP's two are 8."""
_SLOWEST = 100  # times that an operation of one kind may take of the other's: beyond it, the fit is of noise


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of a step. matrices: of all layers but their attention.

    thinness: bands over image tokens; 0 for no bands.
    """

    matrices: float
    attention: float
    thinness: float

    @classmethod
    def of(
        cls,
        width: int,
        height: int,
        attention: float,
        *,
        bands: int = 0,
        blocks: int = LAYERS,
        text: int = TEXT_TOKENS,
    ) -> Work:
        """width, height: pixels. attention: operations of all layers together. text: tokens, by default as measured."""
        image = token_grid(width, height).tokens
        return cls(_PRODUCTS * (image + text) * blocks, attention, bands / image)


@dataclass(frozen=True, slots=True)
class Prediction:
    """beyond: whether it is more work than any step that was measured."""

    seconds: float
    beyond: bool


class StepTimes:
    """Predicts steps with one kind of weights."""

    def __init__(self, steps: Iterable[MeasuredStep], weights: str) -> None:
        """steps: with any weights."""
        steps = tuple(steps)
        works = dict(zip(steps, _works(steps), strict=True))
        # The rates are those of the weights with the most steps: of others one radius may be all that was measured.
        usual = Counter(step.weights for step in steps).most_common(1)
        plain = [step for step in steps if not step.bands]
        self._rates = _rates([(works[step], step.seconds) for step in plain if step.weights == usual[0][0]])
        whole = [step for step in steps if (step.blocks, step.weights) == (LAYERS, weights)]
        curve = sorted((self._time(works[step]), step.seconds) for step in whole if not step.bands)
        self._curve = [(0.0, 0.0), *curve]
        banded = [step for step in whole if step.bands] if curve else []
        # By the bands' thinness: how many times as long a step in bands takes.
        self._longer = [
            (0.0, 1.0),
            *sorted((works[step].thinness, step.seconds / self._plain(works[step])) for step in banded),
        ]

    def predict(self, work: Work) -> Prediction | None:
        """None where nothing like it was measured: no such weights, or no bands as thin."""
        if len(self._curve) == 1 or work.thinness > self._longer[-1][0]:
            return None
        seconds = self._plain(work) * _between(self._longer, work.thinness)
        return Prediction(seconds, self._time(work) > self._curve[-1][0])

    def _plain(self, work: Work) -> float:
        """Without bands. Beyond the last step it is proportional."""
        time, (last, seconds) = self._time(work), self._curve[-1]
        return seconds * time / last if time > last > 0 else _between(self._curve, time)

    def _time(self, work: Work) -> float:
        of_matrices, of_attention = self._rates
        return of_matrices * work.matrices + of_attention * work.attention


def _works(steps: Sequence[MeasuredStep]) -> list[Work]:
    attention = {
        (pixels, radius): attention_flops(TokenLayout(TEXT_TOKENS, token_grid(pixels, pixels)), Window(radius))
        for pixels, radius in {(step.pixels, step.radius) for step in steps}
    }
    return [
        Work.of(
            step.pixels,
            step.pixels,
            step.blocks * attention[step.pixels, step.radius],
            bands=step.bands,
            blocks=step.blocks,
        )
        for step in steps
    ]


def _rates(measured: Sequence[tuple[Work, float]]) -> tuple[float, float]:
    """Seconds of an operation of each kind, by least squares of the relative error.

    Equal where the steps do not tell them apart. Only what they are to each other matters.
    """
    mm = ma = aa = m = a = 0.0
    for work, seconds in measured:
        matrices, attention = work.matrices / seconds, work.attention / seconds
        mm, ma, aa = mm + matrices**2, ma + matrices * attention, aa + attention**2
        m, a = m + matrices, a + attention
    of_matrices, of_attention = m * aa - a * ma, a * mm - m * ma
    slow, fast = max(of_matrices, of_attention), min(of_matrices, of_attention)
    return (of_matrices, of_attention) if 0 < slow < _SLOWEST * fast else (1.0, 1.0)


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """On the straight lines through some points, in order of x. The last point's value beyond it."""
    for (left, low), (right, high) in pairwise(points):
        if x < right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]
