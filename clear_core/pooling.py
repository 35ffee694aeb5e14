"""Down-sampled keys and values: the global view of the "down" variants of CLEAR.

K and V of the image, after RoPE, are pooled over f x f cells with one learned weight per position in the
cell (the mean, 1/f^2, before training). A partial cell at the border, which the authors' code does not
allow, uses the weights of the tokens that exist, rescaled to the same total.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Down-sampled keys and values, each [batch, heads, cells, head_dim]."""

    key: Tensor
    value: Tensor

    @property
    def tokens(self) -> int:
        return self.key.shape[2]


def pooled_grid(grid: Grid, factor: int) -> Grid:
    """The grid of cells: a partial cell at the border counts as one."""
    return Grid(-(-grid.height // factor), -(-grid.width // factor))


def mean_weight(factor: int) -> Tensor:
    """The weight before training: float32 [f, f], each 1 / f^2."""
    return torch.full((factor, factor), 1.0 / factor**2)


def pool(tokens: Tensor, grid: Grid, weight: Tensor) -> Tensor:
    """Pool image tokens over cells.

    tokens: [batch, heads, H*W, head_dim], row-major over `grid`.
    weight: [f, f] on the CPU, rows then columns of a cell.
    Returns [batch, heads, ceil(H/f)*ceil(W/f), head_dim] in the tokens' dtype; sums are taken in float32.
    """
    factor = weight.shape[0]
    if weight.shape != (factor, factor):
        raise ValueError(f"the pooling weight must be square, [f, f], got {tuple(weight.shape)}")
    if tokens.shape[2] != grid.tokens:
        raise ValueError(f"expected {grid.tokens} tokens for a grid of {grid}, got {tokens.shape[2]}")
    cells = pooled_grid(grid, factor)
    weight = weight.to("cpu", torch.float32)
    below, right = cells.height * factor - grid.height, cells.width * factor - grid.width
    image = in_cells(tokens, grid, factor)
    # f^2 additions of strided views: no temporary larger than the result, at any image size.
    total = torch.zeros_like(image[:, :, :, 0, :, 0], dtype=torch.float32)
    for y in range(factor):
        for x in range(factor):
            total.add_(image[:, :, :, y, :, x], alpha=float(weight[y, x]))
    # By numbers, not by a tensor: copying one to a GPU in every layer would wait for all work there.
    rows = (slice(0, -1), slice(-1, None)) if below else (slice(None),)
    columns = (slice(0, -1), slice(-1, None)) if right else (slice(None),)
    for y, down in enumerate(rows):
        for x, across in enumerate(columns):
            used = weight[: factor - below if y else factor, : factor - right if x else factor]
            if used.shape != weight.shape:
                total[:, :, down, across] *= _gain(used, weight)
    if tokens.dtype == torch.float16:
        # Learned weights may add up to more than 1; beyond float16's range they would give infinity, then NaN.
        total.clamp_(*(torch.finfo(torch.float16).min, torch.finfo(torch.float16).max))
    return total.to(tokens.dtype).flatten(2, 3)


def in_cells(tokens: Tensor, grid: Grid, factor: int) -> Tensor:
    """Image tokens by the cell that they lie in, zeros where a partial cell has none.

    tokens: [..., H*W, channels]. Returns [..., cell row, row in it, cell column, column in it, channels], a view where
    every cell is complete.
    """
    cells = pooled_grid(grid, factor)
    image = tokens.unflatten(-2, (grid.height, grid.width))
    below, right = cells.height * factor - grid.height, cells.width * factor - grid.width
    if below or right:
        image = F.pad(image, (0, 0, 0, right, 0, below))
    return image.unflatten(-2, (cells.width, factor)).unflatten(-4, (cells.height, factor))


def pool_key_value(key: Tensor, value: Tensor, grid: Grid, weight: Tensor) -> Pooled:
    """Pool the image's keys and values, each [batch, heads, H*W, head_dim], with one weight [f, f]."""
    return Pooled(pool(key, grid, weight), pool(value, grid, weight))


def _gain(used: Tensor, weight: Tensor) -> float:
    """Factor on the sum over a cell of which only some weights were used, that makes them add up to the full total."""
    part = used.sum()
    # Learned weights may cancel out: then there is nothing to rescale and the plain sum stays.
    return float(weight.sum() / part) if abs(float(part)) > 1e-6 else 1.0
