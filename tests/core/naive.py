"""What is visible and what comes out, query by query, written from the definition alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clear_core.layout import Band, Grid, TokenLayout

Token = tuple[int, int, int]  # index of its grid (-1 for text), row, column


def tokens_of(layout: TokenLayout, rows: Band | None = None, *, text: bool = True) -> list[Token]:
    """Every token in sequence order; `rows` cuts the image's rows."""
    out: list[Token] = [(-1, 0, i) for i in range(layout.text)] if text else []
    for index, grid in enumerate(layout.grids):
        band = rows if rows is not None and index == 0 else grid.rows
        out += [(index, y, x) for y in range(band.start, band.stop) for x in range(grid.width)]
    return out


def sees(query: Token, key: Token, grids: tuple[Grid, ...], radius: int, references: str) -> bool:
    """The table of `clear_core.pattern`, for one pair."""
    if query[0] < 0 or key[0] < 0:
        return True
    if references == "all" and key[0] > 0:
        return True
    here, there = grids[query[0]], grids[key[0]]
    centre_y = math.floor((query[1] + 0.5) / here.height * there.height + 1e-9)
    centre_x = math.floor((query[2] + 0.5) / here.width * there.width + 1e-9)
    return (centre_y - key[1]) ** 2 + (centre_x - key[2]) ** 2 < radius**2


def visible(
    layout: TokenLayout, radius: int, references: str = "window", rows: Band | None = None, *, text: bool = True
) -> Tensor:
    """bool [queries, keys], one Python comparison a pair."""
    queries, keys = tokens_of(layout, rows, text=text), tokens_of(layout)
    return torch.tensor(
        [[sees(query, key, layout.grids, radius, references) for key in keys] for query in queries], dtype=torch.bool
    ).reshape(len(queries), len(keys))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """A loop over queries, float64, heads merged. mask: bool [queries, keys]."""
    batch, heads, queries, dim = query.shape
    out = torch.zeros(batch, queries, heads, dim, dtype=torch.float64)
    for i in range(queries):
        keys, values = key[:, :, mask[i]].double(), value[:, :, mask[i]].double()
        scores = torch.einsum("bhd,bhkd->bhk", query[:, :, i].double(), keys) * scale
        out[:, i] = torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), values)
    return out.flatten(2)
