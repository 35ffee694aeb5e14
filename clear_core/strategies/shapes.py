"""Strategies that are a mask of one shape around each query: they run through the window's own patterns and backends.

A shape says where the centre of each query's keys lies and which keys around it are visible; `LocalPattern` writes its
mask, counts its pairs, and the tiles of the backend `sdpa` gather its keys, as they do for the circle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ..attention import local_attention
from ..layout import Grid, Index, TokenLayout
from ..pattern import LocalPattern
from ..window import WindowShape
from .base import Maps, Parameters, check_layout, scores


@dataclass(frozen=True, slots=True)
class Box:
    """The rectangle of keys from `before` rows and columns before the centre to `after` behind it."""

    before: int
    after: int

    @property
    def halo(self) -> int:
        return max(self.before, self.after)

    def centre(self, index: Index, size: int, key_size: int) -> Index:
        """The query itself. Strategies without reference images have one size."""
        return index

    @overload
    def contains(self, dy: int, dx: int) -> bool: ...
    @overload
    def contains(self, dy: Tensor, dx: Tensor) -> Tensor: ...
    def contains(self, dy: int | Tensor, dx: int | Tensor) -> bool | Tensor:
        rows = (dy <= self.before) & (dy >= -self.after)
        return rows & (dx <= self.before) & (dx >= -self.after)


def between(index: Index, low: int, high: int) -> Index:
    """The index, or the nearer of the two bounds where it lies outside; `low` where `high` is smaller."""
    high = max(low, high)
    return index.clamp(low, high) if isinstance(index, Tensor) else min(max(index, low), high)


class ShapedMask(ABC):
    """A strategy whose image queries see text and the keys in a shape.

    Cost: 4 heads head_dim operations for each visible pair, linear in the tokens.
    """

    @abstractmethod
    def shape(self, layer: int) -> WindowShape:
        """The shape in a layer."""

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        return {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, parameters: Parameters, layer: int = 0
    ) -> Tensor:
        check_layout(query, key, value, layout)
        out = local_attention(query, key, value, self.pattern(layout, layer)).out
        return out.unflatten(2, (query.shape[1], -1)).transpose(1, 2)

    def weights(
        self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters, layer: int = 0
    ) -> Tensor:
        check_layout(query, key, key, layout)
        visible = self.pattern(layout, layer).mask(query.device)
        return scores(query, key).masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def maps(self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters) -> Maps | None:
        return None

    def flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int = 0) -> int:
        return 4 * heads * head_dim * self.pattern(layout, layer).pairs()

    def pattern(self, layout: TokenLayout, layer: int) -> LocalPattern:
        """Which token sees which in a layer."""
        return LocalPattern.whole(layout, self.shape(layer))
