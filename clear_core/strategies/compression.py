"""Strategies that merge the image's keys and values into fewer, and attend to those with softmax.

An image query sees the text as it is and every merged slot:

    O = softmax(Q [K_text; K']^T / sqrt(d)) [V_text; V']

With the linear maps P_K and P_V, K' = P_K K and V' = P_V V, it is O = W V for W = softmax(...) diag(1, P_V).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import TokenLayout
from .base import ImageCall, Maps, Parameters, TextIsDense, image_call, softmax_rows, wide


class Compression(TextIsDense):
    """A strategy of which only the merge is to be written."""

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        key, value = self.merge(call, parameters)
        dtype = call.query.dtype
        return F.scaled_dot_product_attention(
            call.query,
            torch.cat((call.text_key, key.to(dtype)), dim=2),
            torch.cat((call.text_value, value.to(dtype)), dim=2),
        )

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        key, _ = self.merge(call, parameters)
        rows = softmax_rows(call.query, torch.cat((wide(call.text_key), wide(key)), dim=2))
        text = call.text_key.shape[2]
        return torch.cat((rows[..., :text], rows[..., text:] @ self.image_maps(call, parameters).value), dim=3)

    def maps(self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters) -> Maps | None:
        return self.image_maps(image_call(query, key, key, layout), parameters)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        pairs = layout.image.tokens * (layout.text + self.slots(layout))
        return 4 * heads * head_dim * pairs + self.merge_flops(layout, heads, head_dim)

    @abstractmethod
    def merge(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """K' and V', each [batch, heads, slots, head_dim]."""

    @abstractmethod
    def image_maps(self, call: ImageCall, parameters: Parameters) -> Maps:
        """P_K and P_V."""

    @abstractmethod
    def slots(self, layout: TokenLayout) -> int:
        """How many slots the image's tokens are merged into."""

    @abstractmethod
    def merge_flops(self, layout: TokenLayout, heads: int, head_dim: int) -> int:
        """The operations of `merge`."""
