"""The interface of a strategy, and what all of them share: text stays dense.

A strategy replaces the image-to-image part of one joint attention layer. Text queries attend to every token with plain
softmax attention. Text keys and values enter the image's formula as they are: never masked, merged or decayed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout

Parameters = Mapping[str, Tensor]
"""What a layer learns for its strategy, by name."""


class Maps(NamedTuple):
    """How the image's keys and its values are merged: each [batch or 1, heads or 1, slots, image tokens]."""

    key: Tensor
    value: Tensor


class Strategy(Protocol):
    """One way to let a layer's tokens attend to each other.

    query, key, value: [batch, heads, tokens, head_dim] after RoPE, text first, then the image row by row; float32,
    bfloat16, float16 or float64. layout: text and image; no strategy has reference images. layer: its index, for
    strategies that alternate or draw at random.
    """

    @property
    def name(self) -> str:
        """What it is chosen by."""
        ...

    @property
    def paper(self) -> str:
        """Where it comes from, as an arXiv id."""
        ...

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        """What one layer learns, with the values before training: float32, on the CPU. Most have nothing to learn."""
        ...

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, parameters: Parameters, layer: int = 0
    ) -> Tensor:
        """The layer's output [batch, heads, tokens, head_dim] in the query's dtype, differentiable in all it is given.

        Raises ValueError where the tensors do not fit the layout, or the layout has reference images.
        """
        ...

    def weights(
        self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters, layer: int = 0
    ) -> Tensor:
        """The matrix W with output = W V: [batch or 1, heads, tokens, tokens] in float32 or better.

        Written out, so for small images and for measurements. Where a formula is no such matrix, the strategy says what
        W leaves out.
        """
        ...

    def maps(self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters) -> Maps | None:
        """How keys and values are merged before they are attended to; None where each token is read as it is."""
        ...

    def flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int = 0) -> int:
        """Floating-point operations of the layer's matrix products, two for each multiply-add, text included."""
        ...


@dataclass(frozen=True, slots=True)
class ImageCall:
    """What an image-to-image formula works on, each [batch, heads, tokens, head_dim]: the image's, and the text's."""

    query: Tensor
    key: Tensor
    value: Tensor
    text_key: Tensor
    text_value: Tensor
    grid: Grid

    @property
    def all_keys(self) -> Tensor:
        return torch.cat((self.text_key, self.key), dim=2)

    @property
    def all_values(self) -> Tensor:
        return torch.cat((self.text_value, self.value), dim=2)


class TextIsDense(ABC):
    """A strategy of which only the image's queries are to be written. The others are as described above."""

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        return {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, parameters: Parameters, layer: int = 0
    ) -> Tensor:
        call = image_call(query, key, value, layout)
        text = F.scaled_dot_product_attention(query[:, :, : layout.text], key, value)
        return torch.cat((text, self.image_output(call, parameters, layer).to(query.dtype)), dim=2)

    def weights(
        self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters, layer: int = 0
    ) -> Tensor:
        call = image_call(query, key, key, layout)
        text = softmax_rows(query[:, :, : layout.text], key)
        return torch.cat((text, self.image_weights(call, parameters, layer)), dim=2)

    def maps(self, query: Tensor, key: Tensor, layout: TokenLayout, parameters: Parameters) -> Maps | None:
        return None

    def flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int = 0) -> int:
        text = 4 * layout.text * layout.tokens * heads * head_dim
        return text + self.image_flops(layout, heads, head_dim, layer)

    @abstractmethod
    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        """The output of the image's queries [batch, heads, image tokens, head_dim], in any floating dtype."""

    @abstractmethod
    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        """Their rows of `weights`. The call's value is its key."""

    @abstractmethod
    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        """The operations of the image's queries, and of whatever is made for them."""


def image_call(query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> ImageCall:
    """The call of an image-to-image formula. Raises ValueError as `check_layout`."""
    check_layout(query, key, value, layout)
    text, image, _ = layout.slices()
    return ImageCall(
        query[:, :, image], key[:, :, image], value[:, :, image], key[:, :, text], value[:, :, text], layout.image
    )


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scores(query: Tensor, key: Tensor) -> Tensor:
    """q k^T / sqrt(head_dim) in float32 or better."""
    return wide(query) @ wide(key).transpose(-2, -1) / math.sqrt(query.shape[-1])


def softmax_rows(query: Tensor, key: Tensor) -> Tensor:
    """The softmax of the scores over all keys: [..., queries, keys] in float32 or better."""
    return scores(query, key).softmax(dim=-1)


def check_layout(query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> None:
    """Raises ValueError for tensors that do not fit the layout, and for reference images."""
    if layout.references:
        raise ValueError(f"the layout is {layout}; a strategy has text and one image")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4 or tensor.shape[2] != layout.tokens:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; allowed is [batch, heads, {layout.tokens}, head_dim] for {layout}"
            )
