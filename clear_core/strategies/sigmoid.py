"""Sigmoid attention (arXiv 2409.04431): each weight alone, no softmax over a row.

    W = sigmoid(Q K^T / sqrt(d) - log L)

L is the number of keys, text and image; the bias makes a row add up to about 1 where the scores are 0. Cost: that of
dense attention, quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..call import DEFAULT_BUDGET
from ..layout import TokenLayout
from .base import ImageCall, Parameters, TextIsDense, scores, wide


@dataclass(frozen=True, slots=True)
class Sigmoid(TextIsDense):
    name = "sigmoid"
    paper = "2409.04431"

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        key, value = call.all_keys, wide(call.all_values)
        row = value.shape[0] * value.shape[1] * value.shape[2] * value.element_size()
        parts = call.query.split(max(1, DEFAULT_BUDGET // row), dim=2)
        return torch.cat([_weights(part, key) @ value for part in parts], dim=2)

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        return _weights(call.query, call.all_keys)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        return 4 * layout.image.tokens * layout.tokens * heads * head_dim


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return (scores(query, key) - math.log(key.shape[2])).sigmoid()
