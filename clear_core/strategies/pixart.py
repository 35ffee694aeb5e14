"""Key and value compression of PixArt-Sigma (arXiv 2403.04692): cells of s x s tokens become one.

Convolution: a depthwise s x s convolution with stride s, one kernel for each channel of each head, begins as the mean
of a cell; LayerNorm over all channels of all heads follows. Keys and values share both, as in the original's code.
Mean: the plain mean of a cell, with nothing to learn.

A partial cell at the border, which the original cuts off, uses the weights of the tokens that exist, rescaled to the
same total. Cost: N (T + N / s^2) pairs, 256 image keys for s = 4 at 64 x 64 tokens; quadratic, 1 / s^2 of dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from ..pooling import in_cells, mean_weight, pool, pooled_grid
from .base import ImageCall, Maps, Parameters, wide
from .blocks import block_of
from .compression import Compression


@dataclass(frozen=True, slots=True)
class MeanCompression(Compression):
    side: int = 4
    name = "mean"
    paper = "2403.04692"

    def merge(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        weight = mean_weight(self.side)
        return pool(call.key, call.grid, weight), pool(call.value, call.grid, weight)

    def image_maps(self, call: ImageCall, parameters: Parameters) -> Maps:
        cells = F.one_hot(block_of(call.grid, self.side)).T.to(call.query.device, wide(call.query).dtype)
        mean = (cells / cells.sum(1, keepdim=True))[None, None]
        return Maps(mean, mean)

    def slots(self, layout: TokenLayout) -> int:
        return pooled_grid(layout.image, self.side).tokens

    def merge_flops(self, layout: TokenLayout, heads: int, head_dim: int) -> int:
        return 4 * layout.image.tokens * heads * head_dim


@dataclass(frozen=True, slots=True)
class ConvolutionCompression(Compression):
    """Its `weights` and `maps` take the mean of the kernels of a head and leave out the LayerNorm."""

    side: int = 4
    name = "convolution"
    paper = "2403.04692"

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        return {
            "kernel": torch.full((heads, head_dim, self.side, self.side), 1 / self.side**2),
            "bias": torch.zeros(heads, head_dim),
            "norm_weight": torch.ones(heads, head_dim),
            "norm_bias": torch.zeros(heads, head_dim),
        }

    def merge(self, call: ImageCall, parameters: Parameters) -> tuple[Tensor, Tensor]:
        norm, shift = (wide(parameters[name]).flatten() for name in ("norm_weight", "norm_bias"))

        def merged(tokens: Tensor) -> Tensor:
            cells = _convolved(tokens, call.grid, parameters["kernel"]) + wide(parameters["bias"])[:, None]
            flat = cells.transpose(1, 2).flatten(2)
            flat = F.layer_norm(flat, norm.shape, norm.to(flat.dtype), shift.to(flat.dtype))
            return flat.unflatten(2, (tokens.shape[1], -1)).transpose(1, 2)

        return merged(call.key), merged(call.value)

    def image_maps(self, call: ImageCall, parameters: Parameters) -> Maps:
        kernel = parameters["kernel"].mean(dim=1, keepdim=True)
        tokens = torch.eye(call.grid.tokens, device=call.query.device, dtype=wide(call.query).dtype)
        # The convolution of each token alone is a column of the map.
        columns = _convolved(tokens[:, None, :, None].expand(-1, kernel.shape[0], -1, -1), call.grid, kernel)
        both = columns[..., 0].permute(1, 2, 0)[None]
        return Maps(both, both)

    def slots(self, layout: TokenLayout) -> int:
        return pooled_grid(layout.image, self.side).tokens

    def merge_flops(self, layout: TokenLayout, heads: int, head_dim: int) -> int:
        return 4 * layout.image.tokens * heads * head_dim


def _convolved(tokens: Tensor, grid: Grid, kernel: Tensor) -> Tensor:
    """The cells of tokens [batch, heads, H*W, channels] under a kernel [heads, channels, s, s], in the same shape."""
    tokens = wide(tokens)
    kernel = kernel.to(tokens.dtype)
    side = kernel.shape[-1]
    total = torch.einsum("bhyixjd,hdij->bhyxd", in_cells(tokens, grid, side), kernel)
    there = in_cells(torch.ones(grid.tokens, 1, device=kernel.device, dtype=kernel.dtype), grid, side)[..., 0]
    used = torch.einsum("yixj,hdij->hyxd", there, kernel)
    # Weights of a partial cell that cancel out have nothing to be rescaled by.
    partial = (there.sum((1, 3)) < side**2)[..., None] & (used.abs() > 1e-6)
    full = kernel.sum((2, 3))[:, None, None]
    return (total * torch.where(partial, full / torch.where(partial, used, 1.0), 1.0)).flatten(2, 3)
