"""The authors' loss (Huage001/CLEAR, distill.py), which the paper gives as equation 6.

    flow        mean (student - (noise - x0))^2
    output      mean (student - teacher)^2
    attention   mean over the compared layers of mean (attention output of student - of teacher)^2
    total       flow + 0.5 output + 0.5 attention

Means are over the batch, all tokens, text included, and channels. The flow term's gradient is mostly the noise of
single samples, which hides the other two in a short training: `LossWeights` can leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..weights import BlockId

_EVERY: Final = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of a model for one batch. out: velocity [batch, image tokens, channels].

    attention: of the compared blocks, the attention output before its projection: [batch, tokens, channels].
    """

    out: Tensor
    attention: Mapping[BlockId, Tensor]


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Of the terms in the total; the authors' by default."""

    flow: float = 1.0
    output: float = 0.5
    attention: float = 0.5


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars; attention_each: of each compared block, in order."""

    flow: Tensor
    output: Tensor
    attention: Tensor
    attention_each: Tensor
    weights: LossWeights

    @property
    def total(self) -> Tensor:
        weights = self.weights
        return weights.flow * self.flow + weights.output * self.output + weights.attention * self.attention

    def detached(self) -> Losses:
        return Losses(
            self.flow.detach(),
            self.output.detach(),
            self.attention.detach(),
            self.attention_each.detach(),
            self.weights,
        )


def compared_blocks(double: int, single: int) -> tuple[BlockId, ...]:
    """Every fourth block, counted over double and single blocks, that is a single one. FLUX.1: single 1, 5, ..., 37."""
    return tuple(BlockId("single", n - double) for n in range(double, double + single) if n % _EVERY == 0)


def losses(student: Prediction, teacher: Prediction, target: Tensor, weights: LossWeights | None = None) -> Losses:
    """target: noise - x0, in the layout of `out`. weights: None for the authors'. Computed in float32."""
    out, wanted = student.out.float(), teacher.out.float()
    each = [
        (student.attention[block].float() - known.float()).square().mean() for block, known in teacher.attention.items()
    ]
    compared = torch.stack(each) if each else out.new_zeros(1)  # a model of few blocks
    flow, output = (out - target.float()).square().mean(), (out - wanted).square().mean()
    return Losses(flow, output, compared.mean(), compared, weights or LossWeights())
